"""Uploaded wheels in the database.

A row exists before its file and after it; ``is_stored`` says that the wheel may be used.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from roadless.service.contract.states import TERMINAL
from roadless.service.db.keyset import Place, newest_first, place_of
from roadless.service.db.tables import JobRow, WheelRow
from roadless.service.errors import NotFound


def _named_by_job() -> ColumnElement[str]:
    """The id of the wheel of a job's model, or of the checkpoint's model that it starts from."""
    return func.coalesce(
        JobRow.spec["model"]["wheel"].as_string(),
        JobRow.spec["model"]["architecture"]["wheel"].as_string(),
    )


def _stored(project: str) -> Select[WheelRow]:
    return select(WheelRow).where(WheelRow.project == project, WheelRow.is_stored)


def insert(session: Session, row: WheelRow) -> None:
    """Add a wheel, whose file may come later."""
    session.add(row)
    session.flush()


def get(session: Session, wheel_id: str, project: str, *, lock: bool = False) -> WheelRow:
    """The wheel, locked until the transaction ends if asked; raises NotFound."""
    query = _stored(project).where(WheelRow.id == wheel_id)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound.by_id("wheel", wheel_id, listed="GET /v1/wheels")
    return row


def usable(session: Session, wheel_id: str, project: str) -> WheelRow | None:
    """The wheel if jobs may use it; until the transaction ends nobody can delete it."""
    query = _stored(project).where(WheelRow.id == wheel_id)
    return session.scalar(query.with_for_update(read=True))


def same(session: Session, project: str, *, file_name: str, sha256: str) -> WheelRow | None:
    """The project's wheel of this name and content, the oldest one."""
    query = _stored(project).where(WheelRow.file_name == file_name, WheelRow.sha256 == sha256)
    return session.scalars(query.order_by(WheelRow.created_at).limit(1)).first()


def count(session: Session, project: str) -> int:
    """Wheels of the project, including those being uploaded."""
    query = select(func.count()).select_from(WheelRow).where(WheelRow.project == project)
    return session.scalar(query) or 0


def page(session: Session, project: str, *, after: Place | None, limit: int) -> Sequence[WheelRow]:
    """Up to ``limit`` wheels, newest first, after a place; raises NotFound for an unknown id."""
    query = _stored(project)
    if after is not None and after.order is None:
        after = place_of(get(session, after.id, project))
    return session.scalars(newest_first(query, WheelRow, after=after, limit=limit)).all()


def users(session: Session, wheel_id: str, *, limit: int) -> Sequence[str]:
    """Ids of jobs that have not ended and whose model comes from the wheel."""
    query = select(JobRow.id).where(JobRow.phase.not_in(TERMINAL), _named_by_job() == wheel_id)
    return session.scalars(query.limit(limit)).all()


def of_job(session: Session, job_id: str) -> WheelRow | None:
    """The wheel that the job's model comes from, if it does from one."""
    query = select(WheelRow).join(JobRow, WheelRow.id == _named_by_job())
    return session.scalar(query.where(JobRow.id == job_id, WheelRow.is_stored))


def locked(session: Session, wheel_id: str) -> WheelRow | None:
    """The wheel, stored or not, locked until the transaction ends."""
    return session.scalar(select(WheelRow).where(WheelRow.id == wheel_id).with_for_update())


def alike(session: Session, row: WheelRow) -> Sequence[WheelRow]:
    """All wheels of the same name and content, stored or not, locked in one order."""
    query = select(WheelRow).where(
        WheelRow.project == row.project,
        WheelRow.file_name == row.file_name,
        WheelRow.sha256 == row.sha256,
    )
    return session.scalars(query.order_by(WheelRow.id).with_for_update()).all()


def remove(session: Session, row: WheelRow) -> None:
    """Delete the row."""
    session.delete(row)


def unfinished(session: Session, *, before: datetime, limit: int) -> Sequence[WheelRow]:
    """Wheels made before then that are not stored."""
    query = (
        select(WheelRow)
        .where(~WheelRow.is_stored, WheelRow.created_at < before)
        .order_by(WheelRow.created_at)
        .limit(limit)
    )
    return session.scalars(query).all()
