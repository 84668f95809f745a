"""/v1/jobs/{id}/eval-curve: the points, and their bounds as another package computes them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool

from roadless.service.attempts.store import require_job
from roadless.service.auth.dependencies import Project
from roadless.service.contract.resources import CurvePoint, EvalCurve
from roadless.service.db.session import Database
from roadless.service.db.tables import EvalPointRow
from roadless.service.evaluations import store
from roadless.service.http.dependencies import Db, state_of
from roadless.service.http.routing import GuardedRoute

#: The most points in one answer; ask again with ``since`` the last step for more.
MAX_POINTS = 10_000
#: The same with bounds, each of which costs a pass over the steps.
MAX_POINTS_WITH_BOUND = 200

router = APIRouter(route_class=GuardedRoute, prefix="/v1/jobs/{job_id}/eval-curve", tags=["curves"])


class CurveBounds(Protocol):
    """Something that can bound a job's loss."""

    async def __call__(
        self, job_id: str, project: str, steps: Sequence[int]
    ) -> Mapping[int, float | None]:
        """Return the bound after each of the steps that has one."""


async def _bounds(request: Request) -> CurveBounds:
    return state_of(request).part(CurveBounds)  # type: ignore[type-abstract]


Bounds = Annotated[CurveBounds, Depends(_bounds)]


@router.get("")
async def eval_curve(
    job_id: str,
    project: Project,
    db: Db,
    bounds: Bounds,
    since: Annotated[int, Query(ge=-1, description="only points after this step")] = -1,
    bound: Annotated[bool, Query(description="with the convex bound of each point")] = False,
) -> EvalCurve:
    """The loss of the averaged point by step: at each, that of a finished model."""
    limit = MAX_POINTS_WITH_BOUND if bound else MAX_POINTS
    look = partial(_curve, db, job_id, project, since=since, limit=limit)
    curve = await run_in_threadpool(look)
    if not bound or not curve.data:
        return curve
    return _with_bounds(curve, await bounds(job_id, project, [point.step for point in curve.data]))


def _curve(db: Database, job_id: str, project: str, *, since: int, limit: int) -> EvalCurve:
    with db.read() as session:
        require_job(session, job_id, project)
        rows = store.curve(session, job_id, since=since, limit=limit)
        return EvalCurve(
            job_id=job_id, data=[_point(point, checkpoint_id) for point, checkpoint_id in rows]
        )


def _with_bounds(curve: EvalCurve, bounds: Mapping[int, float | None]) -> EvalCurve:
    points = [point.model_copy(update={"bound": bounds.get(point.step)}) for point in curve.data]
    return curve.model_copy(update={"data": points})


def _point(point: EvalPointRow, checkpoint_id: str | None) -> CurvePoint:
    return CurvePoint(
        step=point.step,
        samples=point.samples,
        tokens=point.tokens,
        wall_seconds=point.wall_seconds,
        gpu_seconds=point.gpu_seconds,
        loss=point.loss,
        metrics=point.metrics,
        checkpoint_id=checkpoint_id,
    )
