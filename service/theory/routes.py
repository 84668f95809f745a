"""GET /v1/jobs/{job_id}/theory and POST /v1/plan: what the convex theory says."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from roadless.service.auth.dependencies import Project, require_user
from roadless.service.contract.theory.analysis import Norms, Theory
from roadless.service.contract.theory.plan import LARGEST, SMALLEST, Plan, PlanRequest
from roadless.service.db.session import Database
from roadless.service.http.dependencies import Db
from roadless.service.http.middleware import takes_up_to
from roadless.service.http.openapi import may_refuse
from roadless.service.http.routing import GuardedRoute
from roadless.service.theory import reading, views
from roadless.service.theory.concurrency import TheoryLimit
from roadless.service.theory.planner import plan_of

router = APIRouter(route_class=GuardedRoute, prefix="/v1", tags=["theory"])

#: `MAX_GRAD_NORMS` numbers of full precision, and the rest.
MAX_PLAN_BYTES = 4 * 2**20

Distance = Annotated[
    float | None,
    Query(
        ge=SMALLEST,
        le=LARGEST,
        allow_inf_nan=False,
        description="distance from the start to the optimum; default: fitted",
    ),
]
Steps = Annotated[
    int | None,
    Query(ge=2, description="total steps of the extension; default: twice as many"),
]


@router.get("/jobs/{job_id}/theory", responses=may_refuse(409))
async def job_theory(
    job_id: str,
    project: Project,
    db: Db,
    limit: TheoryLimit,
    distance: Distance = None,
    steps: Steps = None,
    norms: Norms = "logged",
) -> Theory:
    """The bound beside the eval curve, other schedules beside the job's, and how to continue."""
    wanted = views.Wanted(distance=distance, to_step=steps, norms=norms)
    return await limit.run(partial(_theory, db, job_id, project, wanted))


def _theory(db: Database, job_id: str, project: str, wanted: views.Wanted) -> Theory:
    with db.read() as session:
        record = reading.read(session, job_id, project)
    return views.theory_of(record, wanted)


@router.post("/plan", dependencies=[Depends(require_user)])
@takes_up_to(MAX_PLAN_BYTES)
async def plan(request: PlanRequest, limit: TheoryLimit) -> Plan:
    """Best base rates of schedules over a horizon, and how to make a run longer."""
    return await limit.run(partial(plan_of, request))
