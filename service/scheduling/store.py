"""Runners and the queue in the database."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select, tuple_, update
from sqlalchemy.orm import Session

from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.cluster import Node
from roadless.service.contract.states import CLAIMABLE, Desired, Phase, Reason
from roadless.service.db.tables import AttemptRow, JobRow, RunnerRow
from roadless.service.errors import NotFound

#: How many queued jobs one page of the queue holds.
QUEUE_PAGE = 200

#: What decides whether a job fits: fields of its specification, by path.
_SHAPE = (
    ("parallelism", "num_workers"),
    ("parallelism", "min_workers"),
    ("parallelism", "cpus_per_worker"),
    ("parallelism", "gpus_per_worker"),
    ("parallelism", "replicas"),
    ("training", "batch_size"),
)


def runners_called(session: Session, *, name: str, cluster: str) -> Sequence[RunnerRow]:
    """The runner with this name and that of this cluster, which may be one, or missing; locked."""
    query = (
        select(RunnerRow)
        .where(or_(RunnerRow.name == name, RunnerRow.cluster == cluster))
        .order_by(RunnerRow.id)
        .with_for_update(key_share=True)
    )
    return session.scalars(query).all()


def add_runner(session: Session, name: str, *, now: datetime) -> RunnerRow:
    """A new runner without nodes."""
    runner = RunnerRow(id=new_id("run"), name=name, nodes=[], created_at=now, last_seen_at=now)
    session.add(runner)
    return runner


def locked_runner(session: Session, runner_id: str) -> RunnerRow:
    """The runner, locked so that its syncs take turns; raises NotFound if it never registered."""
    query = select(RunnerRow).where(RunnerRow.id == runner_id)
    runner = session.scalar(query.with_for_update(key_share=True))
    if runner is None:
        raise NotFound(
            f"expected the id of a runner, saw {runner_id[:80]!r}, which none has; register first"
        )
    return runner


def touch(runner: RunnerRow, *, nodes: list[Node], now: datetime) -> None:
    """Record what the runner sees."""
    runner.last_seen_at = now
    runner.nodes = [node.model_dump() for node in nodes]


def claimable(
    session: Session,
    *,
    now: datetime,
    silent_since: datetime,
    after: JobRow | None,
    without: Collection[JobRow],
) -> Sequence[JobRow]:
    """The next `QUEUE_PAGE` jobs that wait, locked, best first; those locked elsewhere are skipped.

    A job waits while an attempt of it may still hold seats, unless its runner has been silent since
    ``silent_since``: the fence keeps such an attempt from writing. After losses in a row it waits
    until its time comes.

    Args:
        session: an open transaction.
        now: the time.
        silent_since: see above.
        after: the last job of the page before; None: the first page.
        without: jobs that do not fit; others of the same shape are left out, however many they are.
    """
    holding = (
        select(AttemptRow.id)
        .join(RunnerRow, RunnerRow.id == AttemptRow.runner_id)
        .where(AttemptRow.job_id == JobRow.id, AttemptRow.released_at.is_(None))
        .where(RunnerRow.last_seen_at >= silent_since)
    )
    is_due = or_(JobRow.not_before.is_(None), JobRow.not_before <= now)
    query = select(JobRow).where(JobRow.phase.in_(CLAIMABLE), is_due, ~holding.exists())
    if after is not None:
        query = query.where(_comes_after(after))
    query = (
        query.where(*(~_has_shape(job) for job in without))
        .order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
        .limit(QUEUE_PAGE)
        .with_for_update(skip_locked=True, of=JobRow)
        .execution_options(populate_existing=True)
    )
    return session.scalars(query).all()


def _comes_after(job: JobRow) -> ColumnElement[bool]:
    is_younger = tuple_(JobRow.created_at, JobRow.id) > tuple_(job.created_at, job.id)
    same_priority = and_(JobRow.priority == job.priority, is_younger)
    return or_(JobRow.priority < job.priority, same_priority)


def shape_of(job: JobRow) -> tuple[int | None, ...]:
    """What decides whether the job fits: two jobs of one shape fit alike."""
    return tuple(job.spec[section].get(field) for section, field in _SHAPE)


def _has_shape(job: JobRow) -> ColumnElement[bool]:
    fields = zip(_SHAPE, shape_of(job), strict=True)
    return and_(
        *(JobRow.spec[path].as_integer().is_not_distinct_from(value) for path, value in fields)
    )


def running(session: Session, job_ids: Collection[str]) -> Sequence[JobRow]:
    """Those of these jobs that train and are to continue, locked, oldest first.

    Those locked elsewhere are skipped. Who writes to a job's history holds its lock, so that its
    lines appear in the order of their numbers and no reader passes one by.
    """
    query = (
        select(JobRow)
        .where(JobRow.id.in_(job_ids), JobRow.phase == Phase.RUNNING)
        .where(JobRow.desired == Desired.RUN)
        .order_by(JobRow.created_at, JobRow.id)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return session.scalars(query).all()


def overdue(session: Session, *, now: datetime, limit: int) -> Sequence[JobRow]:
    """Jobs whose phase has passed its deadline, locked; those held elsewhere are skipped."""
    query = (
        select(JobRow)
        .where(JobRow.deadline_at < now)
        .order_by(JobRow.deadline_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    return session.scalars(query).all()


def held_by_silent(
    session: Session, *, since: datetime, limit: int
) -> Sequence[tuple[JobRow, AttemptRow, str]]:
    """Attempts that have ended and that only a runner silent since then could release.

    With their jobs, both locked, and the runner's name; those held elsewhere are skipped.
    """
    query = (
        select(JobRow, AttemptRow, RunnerRow.name)
        .join(AttemptRow, AttemptRow.job_id == JobRow.id)
        .join(RunnerRow, RunnerRow.id == AttemptRow.runner_id)
        .where(AttemptRow.released_at.is_(None), AttemptRow.ended_at.is_not(None))
        .where(RunnerRow.last_seen_at < since)
        .order_by(AttemptRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=[JobRow, AttemptRow])
        .execution_options(populate_existing=True)
    )
    return [(job, attempt, name) for job, attempt, name in session.execute(query)]


def last_seen(session: Session, runner_id: str) -> datetime:
    """When the runner last called."""
    return session.scalars(select(RunnerRow.last_seen_at).where(RunnerRow.id == runner_id)).one()


def has_runner(session: Session, *, since: datetime) -> bool:
    """Whether any runner has called since then."""
    query = select(RunnerRow.id).where(RunnerRow.last_seen_at >= since).limit(1)
    return session.scalars(query).first() is not None


def explain_queued(session: Session, *, reason: Reason, message: str) -> None:
    """Record for every queued job why it waits, except those being claimed right now."""
    unexplained = select(JobRow.id).where(
        JobRow.phase == Phase.QUEUED, JobRow.reason.is_distinct_from(reason)
    )
    some = unexplained.with_for_update(skip_locked=True).scalar_subquery()
    session.execute(
        update(JobRow).where(JobRow.id.in_(some)).values(reason=reason, message=message)
    )
