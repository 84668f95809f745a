"""Runners and the queue in the database."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.cluster import Node
from roadless.service.contract.states import CLAIMABLE, Desired, Phase, Reason
from roadless.service.db.tables import AttemptRow, JobRow, RunnerRow
from roadless.service.errors import NotFound

#: How many queued jobs one claim looks at.
QUEUE_WINDOW = 200


def register(session: Session, name: str, *, now: datetime) -> RunnerRow:
    """The runner of this name, made when it is new."""
    runner = session.scalar(select(RunnerRow).where(RunnerRow.name == name))
    if runner is None:
        runner = RunnerRow(id=new_id("run"), name=name, nodes=[], created_at=now, last_seen_at=now)
        session.add(runner)
    runner.last_seen_at = now
    return runner


def locked_runner(session: Session, runner_id: str) -> RunnerRow:
    """The runner, whose syncs take turns; raises NotFound for one that never registered."""
    query = select(RunnerRow).where(RunnerRow.id == runner_id)
    runner = session.scalar(query.with_for_update(key_share=True))
    if runner is None:
        raise NotFound(f"no runner {runner_id!r}; register first")
    return runner


def touch(runner: RunnerRow, *, nodes: list[Node], now: datetime) -> None:
    """Note what the runner sees."""
    runner.last_seen_at = now
    runner.nodes = [node.model_dump() for node in nodes]


def claimable(session: Session, *, silent_since: datetime) -> Sequence[JobRow]:
    """Jobs that wait, locked, best first; jobs that another claim holds are passed over.

    A job waits while an attempt of it may still hold seats, unless its runner has been silent since
    ``silent_since``: the fence keeps such an attempt from writing.
    """
    holding = (
        select(AttemptRow.id)
        .join(RunnerRow, RunnerRow.id == AttemptRow.runner_id)
        .where(AttemptRow.job_id == JobRow.id, AttemptRow.released_at.is_(None))
        .where(RunnerRow.last_seen_at >= silent_since)
    )
    query = (
        select(JobRow)
        .where(JobRow.phase.in_(CLAIMABLE), ~holding.exists())
        .order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
        .limit(QUEUE_WINDOW)
        .with_for_update(skip_locked=True, of=JobRow)
        .execution_options(populate_existing=True)
    )
    return session.scalars(query).all()


def running(session: Session, job_ids: Collection[str]) -> Sequence[JobRow]:
    """Those of these jobs that train and shall go on training, oldest first."""
    query = select(JobRow).where(
        JobRow.id.in_(job_ids), JobRow.phase == Phase.RUNNING, JobRow.desired == Desired.RUN
    )
    return session.scalars(query.order_by(JobRow.created_at, JobRow.id)).all()


def overdue(session: Session, *, now: datetime, limit: int) -> Sequence[JobRow]:
    """Jobs whose phase has passed its deadline, locked; those held elsewhere are passed over."""
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
    """Attempts that have ended and that only a runner unheard since then could release.

    With their jobs, both locked, and the runner's name; those held elsewhere are passed over.
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


def has_runner(session: Session, *, since: datetime) -> bool:
    """Whether any runner was heard since then."""
    query = select(RunnerRow.id).where(RunnerRow.last_seen_at >= since).limit(1)
    return session.scalars(query).first() is not None


def explain_queued(session: Session, *, reason: Reason, message: str) -> None:
    """Say of every queued job why it waits, but of those that are being claimed just now."""
    unexplained = select(JobRow.id).where(
        JobRow.phase == Phase.QUEUED, JobRow.reason.is_distinct_from(reason)
    )
    some = unexplained.with_for_update(skip_locked=True).scalar_subquery()
    session.execute(
        update(JobRow).where(JobRow.id.in_(some)).values(reason=reason, message=message)
    )
