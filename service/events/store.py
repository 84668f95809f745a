"""Events in the database."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from roadless.service.contract.base import MAX_MESSAGE_LENGTH
from roadless.service.db.deletion import ROWS_TOGETHER, delete_some
from roadless.service.db.tables import EventRow, JobRow


def add(
    session: Session,
    job: JobRow,
    *,
    code: str,
    message: str,
    at: datetime,
    attempt_id: str | None = None,
) -> None:
    """Write one line of the job's history; a message beyond the bound is cut."""
    session.add(
        EventRow(
            job_id=job.id,
            project=job.project,
            attempt_id=attempt_id,
            at=at,
            code=code,
            message=message[:MAX_MESSAGE_LENGTH],
        )
    )


def page(
    session: Session, job_id: str, *, project: str, after: int, limit: int
) -> Sequence[EventRow]:
    """Up to ``limit`` events after the one with number ``after``, oldest first."""
    query = (
        select(EventRow)
        .where(EventRow.job_id == job_id, EventRow.project == project, EventRow.id > after)
        .order_by(EventRow.id)
        .limit(limit)
    )
    return session.scalars(query).all()


def told(session: Session, job_id: str, codes: Collection[str]) -> tuple[int, str | None]:
    """How many lines of the job's history have one of these codes, and the last one's message."""
    found = select(EventRow).where(EventRow.job_id == job_id, EventRow.code.in_(codes))
    number = session.scalar(select(func.count()).select_from(found.subquery()))
    last = session.scalars(found.order_by(EventRow.id.desc()).limit(1)).first()
    return number or 0, last.message if last else None


def delete_some_of_job(session: Session, job_id: str) -> bool:
    """Delete some of the job's events; return whether there may be more."""
    mine = EventRow.job_id == job_id
    return delete_some(session, EventRow, mine, limit=ROWS_TOGETHER) == ROWS_TOGETHER
