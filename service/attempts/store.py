"""Attempts, their ranks' sequence numbers, and their leases in the database."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from roadless.service.attempts.supersede import cutoffs
from roadless.service.auth.tokens import digest
from roadless.service.contract.job.spec import RetrySpec
from roadless.service.db.deletion import ROWS_TOGETHER, delete_some, is_kept
from roadless.service.db.tables import AttemptRow, CheckpointRow, EvalPointRow, JobRow, RankRow
from roadless.service.errors import NotFound


def insert(
    session: Session,
    job: JobRow,
    *,
    attempt_id: str,
    token: str,
    runner_id: str,
    seats: dict[str, int],
    resume: CheckpointRow | None,
    lease_until: datetime,
    now: datetime,
) -> AttemptRow:
    """Write the job's next attempt and raise its fence.

    ``seats``: the columns world_size, cpus_per_worker and gpus_per_worker.
    """
    job.fence += 1
    attempt = AttemptRow(
        id=attempt_id,
        job_id=job.id,
        project=job.project,
        runner_id=runner_id,
        fence=job.fence,
        token_sha256=digest(token),
        resume_checkpoint_id=resume.id if resume else None,
        resumed_step=resume.step if resume else 0,
        provenance={},
        lease_until=lease_until,
        created_at=now,
        **seats,
    )
    session.add(attempt)
    return attempt


def by_token(session: Session, token: str) -> AttemptRow | None:
    """The attempt that this token belongs to."""
    return session.scalar(select(AttemptRow).where(AttemptRow.token_sha256 == digest(token)))


def job_of_token(session: Session, token: str) -> str | None:
    """The id of the job whose attempt this token belongs to."""
    return session.scalar(select(AttemptRow.job_id).where(AttemptRow.token_sha256 == digest(token)))


def provenance(session: Session, attempt_id: str) -> dict[str, str]:
    """What the attempt reported about its machine, software and data when it started."""
    query = select(AttemptRow.provenance).where(AttemptRow.id == attempt_id)
    return session.scalar(query) or {}


def newest(session: Session, job_id: str) -> AttemptRow | None:
    """The job's newest attempt."""
    query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.fence.desc())
    return session.scalars(query.limit(1)).first()


def newest_of_each(session: Session, jobs: Sequence[JobRow]) -> dict[str, AttemptRow]:
    """The newest attempt of each of these jobs, by job id."""
    wanted = {(job.id, job.fence) for job in jobs}
    query = select(AttemptRow).where(AttemptRow.job_id.in_([job.id for job in jobs]))
    rows = (row for row in session.scalars(query) if (row.job_id, row.fence) in wanted)
    return {row.job_id: row for row in rows}


def holds_anything(session: Session, job_id: str) -> bool:
    """Whether an attempt of the job may still hold seats on a cluster."""
    query = select(AttemptRow.id).where(
        AttemptRow.job_id == job_id, AttemptRow.released_at.is_(None)
    )
    return session.scalars(query.limit(1)).first() is not None


def held_by(session: Session, runner_id: str) -> Sequence[AttemptRow]:
    """The runner's attempts that are not known to be released, as they are now, oldest first."""
    query = (
        select(AttemptRow)
        .where(AttemptRow.runner_id == runner_id, AttemptRow.released_at.is_(None))
        .order_by(AttemptRow.created_at, AttemptRow.id)
    )
    return session.scalars(query.execution_options(populate_existing=True)).all()


def unlocked(session: Session, attempt_ids: Collection[str]) -> set[str]:
    """Those of these attempts on which no other transaction works, locked from here on.

    They are read again. Whoever waited for the others would hold these meanwhile, and two that hold
    some and wait for others may wait for each other.
    """
    query = select(AttemptRow).where(AttemptRow.id.in_(attempt_ids)).order_by(AttemptRow.id)
    query = query.with_for_update(skip_locked=True, key_share=True)
    rows = session.scalars(query.execution_options(populate_existing=True))
    return {attempt.id for attempt in rows}


def hang_seconds(session: Session, job_ids: Collection[str]) -> dict[str, float]:
    """How long a step of each of these jobs may take."""
    query = select(JobRow.id, JobRow.spec).where(JobRow.id.in_(job_ids))
    return {
        job_id: RetrySpec.model_validate(spec.get("retry", {})).hang_seconds
        for job_id, spec in session.execute(query)
    }


def expired(session: Session, *, now: datetime, limit: int) -> Sequence[tuple[JobRow, AttemptRow]]:
    """Attempts that have not ended and whose lease has run out, with their jobs, both locked.

    Those that another transaction holds, for instance a late report, are skipped.
    """
    query = (
        select(JobRow, AttemptRow)
        .join(AttemptRow, AttemptRow.job_id == JobRow.id)
        .where(AttemptRow.ended_at.is_(None), AttemptRow.lease_until < now)
        .order_by(AttemptRow.lease_until)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return [(job, attempt) for job, attempt in session.execute(query)]


def applied_seq(session: Session, attempt_id: str, rank: int) -> RankRow:
    """The row with the rank's highest applied sequence number, created if absent."""
    row = session.get(RankRow, (attempt_id, rank))
    if row is None:
        row = RankRow(attempt_id=attempt_id, rank=rank, applied_seq=0)
        session.add(row)
    return row


def require_job(session: Session, job_id: str, project: str) -> None:
    """Raise NotFound unless the project has this job."""
    known = select(JobRow.id).where(JobRow.id == job_id, JobRow.project == project, is_kept())
    if session.scalar(known) is None:
        raise NotFound.by_id("job", job_id, listed="GET /v1/jobs")


def live_cutoffs(session: Session, job_id: str, project: str) -> dict[int, int | None]:
    """Up to which step each attempt's points of the job are live (see ``supersede``)."""
    require_job(session, job_id, project)
    query = select(AttemptRow.fence, AttemptRow.resumed_step).where(AttemptRow.job_id == job_id)
    return cutoffs([(fence, step) for fence, step in session.execute(query)])


def is_live(table: type[EvalPointRow] | type[CheckpointRow]) -> ColumnElement[bool]:
    """SQL condition: no later attempt resumed from before this row's step (see ``supersede``)."""
    superseding = select(AttemptRow.id).where(
        AttemptRow.job_id == table.job_id,
        AttemptRow.fence > table.fence,
        AttemptRow.resumed_step < table.step,
    )
    return ~superseding.exists()


def delete_some_of_job(session: Session, job_id: str) -> bool:
    """Delete some of the job's attempts and of their ranks; return whether there may be more."""
    attempts = select(AttemptRow.id).where(AttemptRow.job_id == job_id)
    ranks = RankRow.attempt_id.in_(attempts)
    if delete_some(session, RankRow, ranks, limit=ROWS_TOGETHER) == ROWS_TOGETHER:
        return True
    mine = AttemptRow.job_id == job_id
    return delete_some(session, AttemptRow, mine, limit=ROWS_TOGETHER) == ROWS_TOGETHER
