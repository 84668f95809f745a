"""What users can do with a job. Each action runs in its caller's transaction, on a locked job.

Requesting what is already wanted changes nothing; only extensions add up.
"""

from datetime import datetime

from sqlalchemy.orm import Session

from roadless.service.attempts import store as attempts
from roadless.service.checkpoints import store as checkpoints
from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.contract.job.spec import JobSpec, uploads_of
from roadless.service.contract.requests import Extend, JobPatch, Pause
from roadless.service.contract.resources import ProblemError
from roadless.service.contract.states import Desired, Phase, Reason, Signal
from roadless.service.datasets.actions import require_sealed
from roadless.service.db.tables import JobRow
from roadless.service.errors import Conflict, Invalid
from roadless.service.events import store as events
from roadless.service.jobs import store
from roadless.service.jobs.admission import require_admissible, require_bounded
from roadless.service.jobs.extension import changed, extended, moves_horizon, needs_plan
from roadless.service.jobs.references import require_wheel, with_architecture, with_wheel
from roadless.service.jobs.transitions import (
    Refused,
    Transition,
    end_attempt,
    is_terminal,
    move,
    next_phase,
)
from roadless.service.jobs.views import progress_of
from roadless.service.secrets.actions import require_known

#: Phases of a job that trains, or will as soon as it can.
_GOING_ON = frozenset({Phase.QUEUED, Phase.STARTING, Phase.RUNNING, Phase.RECOVERING})


def submit(session: Session, spec: JobSpec, *, project: str, allow_wheels: bool = False) -> JobRow:
    """Queue a job; raises Invalid when it names another project, or no checkpoint of this one.

    ``allow_wheels``: whether the operator lets models come from uploaded wheels.
    """
    if spec.project != project:
        message = f"expected {project!r}, the project of this token, saw {spec.project!r}"
        raise Invalid.at("/project", message)
    require_admissible(spec)
    for pointer, dataset_id in uploads_of(spec).items():
        require_sealed(session, dataset_id, project, pointer=pointer)
    require_known(session, spec.secrets, project=project)
    now = utc_now()
    spec = with_architecture(session, spec, project=project, now=now)
    spec = with_wheel(session, spec, project=project, is_allowed=allow_wheels)
    job = _queued_row(spec, project, now)
    session.add(job)
    session.flush()
    events.add(session, job, code="phase.queued", message="job created", at=now)
    return job


def _queued_row(spec: JobSpec, project: str, now: datetime) -> JobRow:
    return JobRow(
        id=new_id("job"),
        project=project,
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        spec_version=spec.spec_version,
        priority=spec.priority,
        phase=Phase.QUEUED,
        reason=Reason.WAITING_FOR_CAPACITY,
        desired=Desired.RUN,
        evaluations_requested=0,
        evaluations_served=0,
        version=1,
        fence=0,
        losses_in_a_row=0,
        step=0,
        samples=0,
        tokens=0,
        wall_seconds=0.0,
        gpu_seconds=0.0,
        created_at=now,
    )


# ---- leaving ------------------------------------------------------------------------------------


def stop(transition: Transition, job: JobRow) -> None:
    """Request a graceful end: evaluate, save, leave."""
    if job.desired == Desired.STOP:
        return
    _want(transition, job, Desired.STOP, Signal.STOP, Reason.STOPPED_BY_USER)


def cancel(transition: Transition, job: JobRow) -> None:
    """End it now: fence the attempt off, kill its ranks."""
    if job.desired == Desired.CANCEL:
        return
    _want(transition, job, Desired.CANCEL, Signal.CANCEL, Reason.CANCELLED_BY_USER)
    _end_now(transition, job, reason=Reason.CANCELLED_BY_USER, message="cancelled by a user")


def pause(transition: Transition, job: JobRow, how: Pause) -> None:
    """Request a pause: evaluate, save and leave, or leave immediately if the saved one will do."""
    if job.desired != Desired.PAUSE:
        _want(transition, job, Desired.PAUSE, Signal.PAUSE, Reason.PAUSED_BY_USER)
    if how.checkpoint == "latest":
        message = "paused by a user; will resume from the latest training state"
        _end_now(transition, job, reason=Reason.PAUSED_BY_USER, message=message)


def _want(
    transition: Transition, job: JobRow, desired: Desired, signal: Signal, reason: Reason
) -> None:
    move(transition, job, signal, reason=reason)
    job.desired = desired
    job.not_before = None  # a user's wish is not kept waiting
    job.version += 1


def _end_now(transition: Transition, job: JobRow, *, reason: Reason, message: str) -> None:
    attempt = attempts.newest(transition.session, job.id)
    if attempt is not None:
        end_attempt(transition, job, attempt, reason=reason, message=message)


# ---- continuing ---------------------------------------------------------------------------------


def resume(transition: Transition, job: JobRow) -> None:
    """Resume a paused or stopped job from its newest training state, as it is."""
    if job.desired == Desired.RUN and job.phase in _GOING_ON:
        return
    _open_again(transition, job, Signal.RESUME)


def retry(transition: Transition, job: JobRow) -> None:
    """Try a failed job again, from its newest training state."""
    _open_again(transition, job, Signal.RETRY)


def extend(transition: Transition, job: JobRow, asked: Extend) -> None:
    """Give a job a larger budget, or none; a finished job is opened again.

    Ranks that train get it with the reply to their next report, and no step is lost.
    """
    next_phase(Phase(job.phase), Signal.EXTEND)
    before = JobSpec.model_validate(job.spec)
    if moves_horizon(before, asked):
        _require_no_ranks(transition.session, job)
    state = checkpoints.newest_state(transition.session, job.id)
    progress, from_step = progress_of(job), state.step if state else 0
    after = extended(before, asked, progress=progress, from_step=from_step)
    _respecify(job, after)
    events.add(
        transition.session,
        job,
        code="budget.extended",
        message=f"{_budget_text(before)} -> {_budget_text(after)}",
        at=transition.now,
    )
    if job.phase == Phase.FINISHING or is_terminal(Phase(job.phase)):
        _open_again(transition, job, Signal.EXTEND)


def _require_no_ranks(session: Session, job: JobRow) -> None:
    attempt = attempts.newest(session, job.id)
    if attempt is not None and attempt.ended_at is None:
        raise Conflict(
            f"expected a job without ranks, saw one that is {job.phase}: its rates depend on the "
            "number of steps and cannot change during an attempt; pause, extend and resume it"
        )


def _open_again(transition: Transition, job: JobRow, signal: Signal) -> None:
    require_wheel(transition.session, JobSpec.model_validate(job.spec), project=job.project)
    _want(transition, job, Desired.RUN, signal, Reason.WAITING_FOR_CAPACITY)
    job.losses_in_a_row = 0


def _respecify(job: JobRow, spec: JobSpec) -> None:
    job.spec = spec.model_dump(mode="json")
    job.name, job.priority = spec.name, spec.priority
    job.version += 1


def _budget_text(spec: JobSpec) -> str:
    if spec.budget is None:
        return "open-ended"
    limits = spec.budget.model_dump(exclude_none=True)
    return ", ".join(f"{name} {value}" for name, value in limits.items())


# ---- beside the phases --------------------------------------------------------------------------


def request_evaluation(transition: Transition, job: JobRow) -> None:
    """Request an evaluation and a kept checkpoint after the current step."""
    if is_terminal(Phase(job.phase)) or job.desired != Desired.RUN:
        raise Conflict(
            f"expected a job that is running or waiting to run, saw one that is {job.phase}"
        )
    job.evaluations_requested += 1
    events.add(
        transition.session,
        job,
        code="evaluation.requested",
        message="a user asked for an evaluation",
        at=transition.now,
    )


def patch(transition: Transition, job: JobRow, asked: JobPatch) -> None:
    """Change what may change at any time. A budget replaces the whole one and reopens nothing."""
    before, fields = JobSpec.model_validate(job.spec), asked.model_dump(exclude_unset=True)
    after = changed(before, fields)
    if after == before:
        return
    if after.budget != before.budget:
        _require_free_budget(job, before, after)
        if after.budget is not None:
            require_bounded(after.budget)
    _respecify(job, after)
    text = ", ".join(sorted(fields))
    events.add(
        transition.session, job, code="job.changed", message=f"{text} changed", at=transition.now
    )


def _require_free_budget(job: JobRow, before: JobSpec, after: JobSpec) -> None:
    if is_terminal(Phase(job.phase)):
        raise Refused(
            f"expected a job that has not ended, saw one that is {job.phase}: its budget cannot "
            "be changed; extend the job instead"
        )
    if needs_plan(before, after.budget):
        message = (
            "expected max_steps as it was, since the rates depend on it, saw another; "
            "extend the job with a plan"
        )
        fault = ProblemError(pointer="/budget/max_steps", message=message)
        raise Invalid(message, errors=(fault,))


def delete(session: Session, job: JobRow) -> None:
    """Delete a job that has ended: it is gone for its users, and ``deletion`` removes the rest."""
    if not is_terminal(Phase(job.phase)):
        raise Refused(f"a {job.phase} job cannot be deleted; stop or cancel it first")
    if (other := store.starting_from(session, job.id)) is not None:
        raise Conflict(f"expected no job that starts from a checkpoint of this one, saw {other}")
    store.mark_deleted(job)
