"""Jobs in the database."""

from collections.abc import Collection, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from roadless.service.db.deletion import DELETED, is_kept
from roadless.service.db.keyset import Place, newest_first, place_of
from roadless.service.db.tables import CheckpointRow, JobRow
from roadless.service.errors import NotFound


def get(session: Session, job_id: str, project: str, *, lock: bool = False) -> JobRow:
    """The job, locked until the transaction ends if asked; raises NotFound."""
    query = select(JobRow).where(JobRow.id == job_id, JobRow.project == project, is_kept())
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFound.by_id("job", job_id, listed="GET /v1/jobs")
    return job


def locked(session: Session, job_ids: Collection[str]) -> dict[str, JobRow]:
    """These jobs by id, as they are now, locked until the transaction ends.

    Whoever changes a job or ends an attempt holds the job's lock. A transaction waits for such
    locks once, in order of id, and before it writes to attempts; so no two wait for each other.
    """
    query = select(JobRow).where(JobRow.id.in_(job_ids)).order_by(JobRow.id).with_for_update()
    rows = session.scalars(query.execution_options(populate_existing=True))
    return {row.id: row for row in rows}


def page(
    session: Session, project: str, *, after: Place | None, limit: int, phase: str | None
) -> Sequence[JobRow]:
    """Up to ``limit`` jobs, newest first, after a place; raises NotFound for an unknown id."""
    query = select(JobRow).where(JobRow.project == project, is_kept())
    if phase is not None:
        query = query.where(JobRow.phase == phase)
    if after is not None and after.order is None:
        after = place_of(get(session, after.id, project))
    return session.scalars(newest_first(query, JobRow, after=after, limit=limit)).all()


def starting_from(session: Session, job_id: str) -> str | None:
    """A job whose model starts from a checkpoint of this one; None when there is none.

    The checkpoints stay locked, so that no other job can start from them.
    """
    query = select(CheckpointRow.id).where(CheckpointRow.job_id == job_id)
    ids = session.scalars(query.with_for_update()).all()
    origin = JobRow.spec["model"]["checkpoint_id"].as_string()
    return session.scalar(select(JobRow.id).where(origin.in_(ids), is_kept()).limit(1))


def mark_deleted(job: JobRow) -> None:
    """From now on it is gone for its users; its rows are removed later."""
    job.desired = DELETED
    job.version += 1


def deleted(session: Session, *, limit: int) -> list[tuple[str, str]]:
    """Ids and projects of jobs that users have deleted and that are still to be removed."""
    query = select(JobRow.id, JobRow.project).where(~is_kept()).order_by(JobRow.id).limit(limit)
    return [(job_id, project) for job_id, project in session.execute(query)]


def delete_job(session: Session, job_id: str) -> bool:
    """Delete the row of a deleted job to which nothing belongs any more; returns False: no more."""
    session.execute(delete(JobRow).where(JobRow.id == job_id, ~is_kept()))
    return False
