"""A job's phase changes: which moves are allowed (pure), the row, and what an attempt's end means.

A move also sets the job's version and deadline, and adds a line of history. The end of an attempt
is the one recovery path: the job ends, waits for its user, or is queued for another attempt.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from roadless.service.attempts import store as attempts
from roadless.service.contract.states import (
    REACHED,
    RETRYABLE,
    TERMINAL,
    TRANSITIONS,
    Phase,
    Reason,
    Signal,
)
from roadless.service.db.tables import AttemptRow, JobRow
from roadless.service.errors import Conflict
from roadless.service.events import store as events
from roadless.service.settings import Settings

#: How long the release of seats may take before an event says that it is overdue.
RELEASE_SECONDS = 60.0
#: The longest delay before the next attempt of a job that loses one after another.
LONGEST_RETRY_DELAY_SECONDS = 60.0
#: Phases in which an attempt still works, and after it only its seats are waited for.
LEAVING = frozenset({Phase.STOPPING, Phase.PAUSING})

#: Beyond it the delay is the longest, whatever it began with.
_MOST_DOUBLINGS = 40
_RELEASING = {Phase.FINISHING, Phase.FAILING, Phase.CANCELLING}
_SIGNAL_OF = {
    **dict.fromkeys(REACHED, Signal.BUDGET_REACHED),
    Reason.STOPPED_BY_USER: Signal.STOP_DONE,
    Reason.PAUSED_BY_USER: Signal.PAUSE_DONE,
}


class Refused(Conflict):
    """The job's phase does not allow this."""

    code, title = "phase_refuses", "Not allowed in the job's current phase"


@dataclass(frozen=True)
class Deadlines:
    """Seconds that STARTING, STOPPING or PAUSING, and PAUSED may last; None: for ever.

    ``forget_seconds``: silence of a runner after which its attempts count as released.
    ``grow_seconds``: how long an elastic job keeps its size before it moves to a larger one.
    ``retry_delay_seconds``: what the second loss in a row costs before the next attempt.
    """

    start_seconds: float
    stop_seconds: float
    pause_seconds: float | None
    forget_seconds: float | None
    grow_seconds: float | None = None
    retry_delay_seconds: float = 2.0

    @classmethod
    def from_settings(cls, settings: Settings) -> "Deadlines":
        """What the operator has set."""
        return cls(
            start_seconds=settings.start_seconds,
            stop_seconds=settings.stop_seconds,
            pause_seconds=settings.max_pause_seconds,
            forget_seconds=settings.forget_runner_seconds,
            grow_seconds=settings.grow_seconds,
            retry_delay_seconds=settings.retry_delay_seconds,
        )

    def retry_delay(self, losses_in_a_row: int) -> float:
        """Seconds from the last of these losses to the next attempt.

        None for the first, since most are single; then doubled with each, so that a fault that
        every attempt meets does not use all of them up before it has passed.
        """
        if losses_in_a_row < 2:
            return 0.0
        doublings = min(losses_in_a_row - 2, _MOST_DOUBLINGS)
        return min(self.retry_delay_seconds * 2.0**doublings, LONGEST_RETRY_DELAY_SECONDS)

    def of(self, phase: Phase, now: datetime) -> datetime | None:
        """When a phase entered now must have ended; None: no deadline."""
        seconds = {
            Phase.STARTING: self.start_seconds,
            **dict.fromkeys(LEAVING, self.stop_seconds),
            Phase.PAUSED: self.pause_seconds,
            **dict.fromkeys(_RELEASING | {Phase.RECOVERING}, RELEASE_SECONDS),
        }.get(phase)
        return None if seconds is None else now + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Transition:
    """What every change of a job needs: the open transaction, its time, and the deadlines."""

    session: Session
    now: datetime
    deadlines: Deadlines


def next_phase(phase: Phase, signal: Signal) -> Phase:
    """Where ``signal`` leads from ``phase``; raises Refused when the table has no such move."""
    try:
        return TRANSITIONS[phase, signal]
    except KeyError:
        raise Refused(f"a {phase} job does not accept {signal!s}") from None


def is_allowed(phase: Phase, signal: Signal) -> bool:
    """Whether the table has the move."""
    return (phase, signal) in TRANSITIONS


def is_terminal(phase: Phase) -> bool:
    """Whether nothing is held any more and only a user can open the job again."""
    return phase in TERMINAL


def move(
    transition: Transition,
    job: JobRow,
    signal: Signal,
    *,
    reason: Reason | None = None,
    message: str = "",
) -> None:
    """Apply a signal; raises Refused when the phase does not take it.

    A repeated signal that leads nowhere new changes nothing, version included.
    """
    before, now = Phase(job.phase), transition.now
    after = next_phase(before, signal)
    if after == before:
        return
    job.phase = after
    job.version += 1
    job.deadline_at = transition.deadlines.of(after, now)
    job.reason, job.message = _explain(job, after, reason, message)
    job.ended_at = now if is_terminal(after) else None
    job.not_before = None
    text = f"{before} -> {after}" + (f": {job.message}" if job.message else "")
    events.add(transition.session, job, code=f"phase.{after.lower()}", message=text, at=now)
    settle(transition, job)


def settle(transition: Transition, job: JobRow) -> None:
    """Finish a phase that only waits for seats to be released, when none is held."""
    session, phase = transition.session, Phase(job.phase)
    session.flush()
    waits = phase in _RELEASING or (phase in LEAVING and _has_ended(session, job))
    if waits and not attempts.holds_anything(session, job.id):
        assert is_allowed(phase, Signal.RELEASE)
        move(transition, job, Signal.RELEASE)


def end_attempt(
    transition: Transition,
    job: JobRow,
    attempt: AttemptRow,
    *,
    reason: Reason,
    message: str,
    goes_on: bool = False,
) -> None:
    """Fence the attempt off and move its job on; the job must be locked.

    An attempt that has ended stays as it is. ``goes_on``: what ended it no longer holds, for
    instance a budget that was extended at the same time, so another attempt follows.
    """
    if attempt.ended_at is not None:
        return
    attempt.ended_at, attempt.reason, attempt.message = transition.now, reason, message
    events.add(
        transition.session,
        job,
        code=f"attempt.{reason}",
        message=message,
        at=transition.now,
        attempt_id=attempt.id,
    )
    if goes_on:
        signal = Signal.LOSE
    else:
        signal, reason, message = _consequence(job, reason, message)
    if is_allowed(Phase(job.phase), signal):
        move(transition, job, signal, reason=reason, message=message)
    if job.phase == Phase.RECOVERING and not goes_on:
        _delay(transition, job)
    if job.phase in LEAVING:  # which may end as it began, and now only waits for its seats
        job.deadline_at = transition.now + timedelta(seconds=RELEASE_SECONDS)
    settle(transition, job)


def _delay(transition: Transition, job: JobRow) -> None:
    """Let the next attempt wait, if this loss is not the first in a row."""
    seconds = transition.deadlines.retry_delay(job.losses_in_a_row)
    if not seconds:
        return
    job.not_before = transition.now + timedelta(seconds=seconds)
    tries = int(job.spec["retry"]["max_attempts"])
    events.add(
        transition.session,
        job,
        code="attempt.delayed",
        message=f"{job.losses_in_a_row} attempts in a row failed before saving a training state, "
        f"of at most {tries}; the next one starts in {seconds:g} s",
        at=transition.now,
    )


def _has_ended(session: Session, job: JobRow) -> bool:
    attempt = attempts.newest(session, job.id)
    return attempt is None or attempt.ended_at is not None


def _explain(
    job: JobRow, after: Phase, reason: Reason | None, message: str
) -> tuple[str | None, str | None]:
    """The reason stays from the -ING phase to the end; a running job needs none."""
    if reason is not None:
        return reason, message or None
    if is_terminal(after) or after is Phase.PAUSED:
        return job.reason, job.message
    return None, None


def _consequence(job: JobRow, reason: Reason, message: str) -> tuple[Signal, Reason, str]:
    """Which signal the ending is to the job: an end, or a loss while tries are left."""
    if reason in _SIGNAL_OF:
        return _SIGNAL_OF[reason], reason, message
    if reason not in RETRYABLE:
        return Signal.FAIL, reason, message
    job.losses_in_a_row += 1
    tries = int(job.spec["retry"]["max_attempts"])
    if job.losses_in_a_row < tries:
        return Signal.LOSE, reason, message
    text = (
        f"{tries} attempts in a row failed before saving a training state; the last one: {message}"
    )
    return Signal.FAIL, Reason.RETRIES_EXHAUSTED, text
