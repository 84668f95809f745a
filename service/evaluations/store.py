"""Eval points in the database."""

import math
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from roadless.service.attempts.store import is_live
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.reports.events import EvalPoint
from roadless.service.db.deletion import ROWS_TOGETHER, delete_some
from roadless.service.db.tables import CheckpointRow, EvalPointRow


def insert(session: Session, point: EvalPoint, *, job_id: str, fence: int, now: datetime) -> None:
    """Write one evaluation. Non-finite numbers are kept as null."""
    session.merge(
        EvalPointRow(
            job_id=job_id,
            fence=fence,
            step=point.step,
            samples=point.samples,
            tokens=point.tokens,
            wall_seconds=point.wall_seconds,
            gpu_seconds=point.gpu_seconds,
            loss=_finite(point.loss),
            metrics={name: _finite(value) for name, value in point.metrics.items()},
            created_at=now,
        )
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def curve(
    session: Session, job_id: str, *, since: int, limit: int
) -> Sequence[tuple[EvalPointRow, str | None]]:
    """Live points after step ``since`` in order of step, each with the id of its checkpoint.

    Up to ``limit`` of them, and all of the last one's step: an attempt may evaluate the step that
    it resumed from again, and whoever asks for more asks with that step.
    """
    kept = (CheckpointRow.job_id == EvalPointRow.job_id) & (
        CheckpointRow.fence == EvalPointRow.fence
    )
    kept &= (CheckpointRow.step == EvalPointRow.step) & (CheckpointRow.kind == CheckpointKind.EVAL)
    query = (
        select(EvalPointRow, CheckpointRow.id)
        .join(CheckpointRow, kept, isouter=True)
        .where(EvalPointRow.job_id == job_id, EvalPointRow.step > since)
        .where(is_live(EvalPointRow))
        .where(EvalPointRow.step <= _last_step(job_id, since=since, limit=limit))
        .order_by(EvalPointRow.step, EvalPointRow.fence)
    )
    return [(point, checkpoint_id) for point, checkpoint_id in session.execute(query)]


def _last_step(job_id: str, *, since: int, limit: int) -> ColumnElement[int]:
    """The step of the last of up to ``limit`` live points after step ``since``; SQL."""
    steps = (
        select(EvalPointRow.step)
        .where(EvalPointRow.job_id == job_id, EvalPointRow.step > since, is_live(EvalPointRow))
        .order_by(EvalPointRow.step)
        .limit(limit)
    ).subquery()
    return select(func.max(steps.c.step)).scalar_subquery()


def delete_some_of_job(session: Session, job_id: str) -> bool:
    """Delete some of the job's points of the eval curve; return whether there may be more."""
    mine = EvalPointRow.job_id == job_id
    return delete_some(session, EvalPointRow, mine, limit=ROWS_TOGETHER) == ROWS_TOGETHER
