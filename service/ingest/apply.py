"""One report, applied once, however often it arrives."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from roadless.service.attempts import store as attempts
from roadless.service.attempts.access import open_attempt
from roadless.service.attempts.leases import LeasePolicy
from roadless.service.checkpoints import store as checkpoints
from roadless.service.checkpoints.retention import folder_of
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.job.budget import BudgetSpec
from roadless.service.contract.job.evaluation import CheckpointsSpec
from roadless.service.contract.reports.events import (
    DATA_PREPARING,
    LOST_CHECKPOINT,
    MODEL_TRIED,
    REFUSED_CHECKPOINT,
    BudgetNow,
    CheckpointSaved,
    EvalPoint,
    Event,
    Failed,
    Finished,
    Notice,
    Report,
    ReportReply,
    Started,
    StepMetrics,
    Usage,
)
from roadless.service.contract.states import REACHED, Desired, Phase, Reason, Signal
from roadless.service.db.tables import AttemptRow, JobRow
from roadless.service.errors import Conflict, EventsMissing, Invalid
from roadless.service.evaluations import store as evaluations
from roadless.service.events import store as history
from roadless.service.ingest.ending import Models, missing_model, reason_of
from roadless.service.jobs import store as jobs
from roadless.service.jobs.transitions import Transition, end_attempt, move
from roadless.service.metrics import store as metrics


@dataclass(frozen=True)
class Ingest:
    """One report of one attempt while its transaction is open."""

    transition: Transition
    job: JobRow
    attempt: AttemptRow
    #: Blob folders that may be removed once the transaction is committed.
    dropped: list[str]

    @property
    def session(self) -> Session:
        """The open transaction."""
        return self.transition.session

    @property
    def now(self) -> datetime:
        """When the report is applied."""
        return self.transition.now


def apply_report(
    transition: Transition, report: Report, *, token: str, lease: LeasePolicy
) -> tuple[ReportReply, list[str]]:
    """Apply what is new in the report; return the answer and the blob folders to remove.

    Raises Fenced when the attempt is over, and EventsMissing for a gap before the report.
    """
    session, now = transition.session, transition.now
    job, attempt = lock_open_attempt(session, token)
    if report.rank >= attempt.world_size:
        raise Invalid(f"expected a rank below {attempt.world_size}, saw {report.rank}")
    ingest = Ingest(transition, job, attempt, dropped=[])
    cursor = attempts.applied_seq(session, attempt.id, report.rank)
    fresh = [event for event in report.events if event.seq > cursor.applied_seq]
    _require_gapless([event.seq for event in fresh], cursor.applied_seq)
    _apply_steps(ingest, [event for event in fresh if isinstance(event, StepMetrics)])
    _apply_usage(ingest, [event for event in fresh if isinstance(event, Usage)], report.rank)
    for event in fresh:
        _apply(ingest, event)
    if fresh:
        cursor.applied_seq = fresh[-1].seq
    attempt.lease_until = lease.until(now)
    attempt.heard_at = job.last_heard_at = now
    reply = ReportReply(
        ack_seq=cursor.applied_seq,
        desired=Desired(job.desired),
        evaluations_requested=job.evaluations_requested,
        budget=_budget_of(job),
        resize=attempt.grow_to is not None,
    )
    return reply, ingest.dropped


def _budget_of(job: JobRow) -> BudgetNow:
    limits = job.spec["budget"]
    return BudgetNow(limits=None if limits is None else BudgetSpec.model_validate(limits))


def lock_open_attempt(session: Session, token: str) -> tuple[JobRow, AttemptRow]:
    """The attempt of this token and its job, locked; raises Fenced when the attempt is over.

    The lock comes first: the attempt may end while we wait for it.
    """
    rows = jobs.locked(session, {attempts.job_of_token(session, token) or ""})
    attempt = open_attempt(session, token)
    return rows[attempt.job_id], attempt


def _require_gapless(seen: Sequence[int], applied: int) -> None:
    expected = range(applied + 1, applied + 1 + len(seen))
    if seen and seen[0] > expected.start:
        raise EventsMissing(applied_seq=applied, seen=list(seen))
    if list(seen) != list(expected):
        raise Conflict(f"expected events {expected.start}..{expected.stop - 1}, saw {seen[:20]}")


def _apply_steps(ingest: Ingest, steps: list[StepMetrics]) -> None:
    if not steps:
        return
    metrics.append_steps(
        ingest.session, job_id=ingest.job.id, fence=ingest.attempt.fence, events=steps
    )
    _note_first_step(ingest)
    _note_progress(ingest.job, steps[-1])


def _apply_usage(ingest: Ingest, usage: list[Usage], rank: int) -> None:
    """Any rank may report it, even before the lead's first step: it changes no phase or step."""
    metrics.append_usage(
        ingest.session,
        job_id=ingest.job.id,
        fence=ingest.attempt.fence,
        rank=rank,
        events=usage,
    )


def _note_first_step(ingest: Ingest) -> None:
    job, attempt = ingest.job, ingest.attempt
    if attempt.first_step_at is not None:
        return
    attempt.first_step_at = ingest.now
    job.started_at = job.started_at or ingest.now
    if job.phase == Phase.STARTING:
        _move(ingest, Signal.STEP)
        _hear_earlier_stop(ingest)


def _hear_earlier_stop(ingest: Ingest) -> None:
    """A stop may have been requested while there was no attempt to receive it."""
    if ingest.job.desired == Desired.STOP:
        _move(ingest, Signal.STOP)


def _note_progress(job: JobRow, last: StepMetrics) -> None:
    job.step, job.samples, job.tokens = last.step, last.samples, last.tokens
    job.wall_seconds, job.gpu_seconds = last.wall_seconds, last.gpu_seconds


def _apply(ingest: Ingest, event: Event) -> None:
    session, job, attempt, now = ingest.session, ingest.job, ingest.attempt, ingest.now
    match event:
        case StepMetrics() | Usage():
            pass  # all at once, in _apply_steps and _apply_usage
        case Started():
            _apply_started(ingest, event)
        case EvalPoint():
            evaluations.insert(session, event, job_id=job.id, fence=attempt.fence, now=now)
        case CheckpointSaved():
            _apply_checkpoint(ingest, event)
        case Notice():
            _apply_notice(ingest, event)
        case Finished():
            _apply_finished(ingest, event)
        case Failed():
            end_attempt(ingest.transition, job, attempt, reason=event.reason, message=event.message)


def _apply_notice(ingest: Ingest, event: Notice) -> None:
    history.add(
        ingest.session,
        ingest.job,
        code=event.code,
        message=event.message,
        at=ingest.now,
        attempt_id=ingest.attempt.id,
    )
    is_starting = ingest.job.phase == Phase.STARTING
    if event.code in (DATA_PREPARING, MODEL_TRIED) and is_starting:
        ingest.job.deadline_at = ingest.transition.deadlines.of(Phase.STARTING, ingest.now)


def _apply_finished(ingest: Ingest, event: Finished) -> None:
    is_outdated, is_stopping = _is_outdated(ingest.job, event), ingest.job.phase == Phase.STOPPING
    models = _models(ingest)
    missing = missing_model(event, models)
    if is_stopping and missing:  # a phase that stays keeps its message
        ingest.job.message = missing
    reason = event.reason if is_outdated else reason_of(event, models)
    extended = "the budget had changed in the meantime" if is_outdated else ""
    end_attempt(
        ingest.transition,
        ingest.job,
        ingest.attempt,
        reason=Reason.STOPPED_BY_USER if is_outdated and is_stopping else reason,
        message="; ".join(filter(None, (f"ended after step {event.step}", missing, extended))),
        goes_on=event.reason is Reason.RESIZED or (is_outdated and not is_stopping),
    )


def _models(ingest: Ingest) -> Models:
    session, job_id = ingest.session, ingest.job.id
    session.flush()
    num_refused, refusal = history.told(session, job_id, REFUSED_CHECKPOINT)
    _, loss = history.told(session, job_id, LOST_CHECKPOINT)
    return Models(checkpoints.newest_model_step(session, job_id), num_refused, refusal, loss)


def _is_outdated(job: JobRow, event: Finished) -> bool:
    """Whether the budget that the ranks have reached was changed while they were leaving."""
    if event.reason not in REACHED or event.budget is None:
        return False
    return event.budget != _budget_of(job)


def _apply_started(ingest: Ingest, event: Started) -> None:
    ingest.attempt.provenance = event.provenance
    history.add(
        ingest.session,
        ingest.job,
        code="attempt.started",
        message=f"training on {_ranks(event.world_size)} from step {event.resumed_step}",
        at=ingest.now,
        attempt_id=ingest.attempt.id,
    )
    if ingest.job.phase == Phase.STARTING:
        _hear_earlier_stop(ingest)


def _apply_checkpoint(ingest: Ingest, event: CheckpointSaved) -> None:
    session, job, attempt = ingest.session, ingest.job, ingest.attempt
    kind = CheckpointKind(event.manifest.kind)
    checkpoints.insert(session, event, attempt=attempt, now=ingest.now)
    session.flush()
    if kind is CheckpointKind.RESUME:
        job.losses_in_a_row = 0
    job.evaluations_served = max(job.evaluations_served, event.evaluations_served)
    # A restored database may have forgotten a request that its ranks have served: the next one
    # must count above it.
    job.evaluations_requested = max(job.evaluations_requested, event.evaluations_served)
    policy = CheckpointsSpec.model_validate(job.spec["checkpoints"])
    removed = checkpoints.drop_superfluous(
        session, job.id, kind=kind, policy=policy, now=ingest.now
    )
    ingest.dropped.extend(folder_of(row) for row in removed)


def _move(ingest: Ingest, signal: Signal) -> None:
    move(ingest.transition, ingest.job, signal)


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
