"""The SQL of the theory package: how far a series reaches, and the losses of the eval curve."""

from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from roadless.service.attempts.store import is_live
from roadless.service.db.tables import EvalPointRow, MetricChunkRow

#: The most evaluations read; of more, the newest.
MAX_EVALUATIONS = 100_000


def last_step(
    session: Session, job_id: str, name: str, *, cutoffs: Mapping[int, int | None]
) -> int:
    """Return the last step that a series has a live point of; 0 when it has none."""
    query = (
        select(MetricChunkRow.fence, func.max(MetricChunkRow.last_step))
        .where(MetricChunkRow.job_id == job_id, MetricChunkRow.name == name)
        .group_by(MetricChunkRow.fence)
    )
    reached = {fence: last for fence, last in session.execute(query) if fence in cutoffs}
    return max((_live(last, cutoffs[fence]) for fence, last in reached.items()), default=0)


def _live(last: int, cutoff: int | None) -> int:
    return last if cutoff is None else min(last, cutoff)


def losses(session: Session, job_id: str, *, last_step: int) -> tuple[list[int], list[float]]:
    """Return steps and losses of the live evaluations up to ``last_step``, where finite."""
    query = (
        select(EvalPointRow.step, EvalPointRow.loss)
        .where(EvalPointRow.job_id == job_id, EvalPointRow.loss.is_not(None))
        .where(EvalPointRow.step.between(1, last_step), is_live(EvalPointRow))
        .order_by(EvalPointRow.step.desc())
        .limit(MAX_EVALUATIONS)
    )
    found = [(step, loss) for step, loss in session.execute(query) if loss is not None][::-1]
    return [step for step, _ in found], [loss for _, loss in found]
