"""A phase change in the database: the row, its version, its deadline and a line of history."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.attempts import store as attempts
from service.contract.states import Phase, Reason, Signal
from service.db.tables import JobRow
from service.events import store as events
from service.jobs.lifecycle import is_allowed, is_terminal, next_phase
from service.settings import Settings

#: How long seats may take to be given back before an event says that it is overdue.
RELEASE_SECONDS = 60.0

_RELEASING = {Phase.FINISHING, Phase.FAILING, Phase.CANCELLING}
#: Phases in which an attempt still works, and after it only its seats are waited for.
LEAVING = frozenset({Phase.STOPPING, Phase.PAUSING})


@dataclass(frozen=True)
class Deadlines:
    """Seconds that STARTING, STOPPING or PAUSING, and PAUSED may last; None: for ever.

    ``forget_seconds``: silence of a runner after which its attempts count as released.
    ``grow_seconds``: how long an elastic job keeps its size before it moves to a larger one.
    """

    start_seconds: float
    stop_seconds: float
    pause_seconds: float | None
    forget_seconds: float | None
    grow_seconds: float | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Deadlines":
        """What the operator has set."""
        return cls(
            start_seconds=settings.start_seconds,
            stop_seconds=settings.stop_seconds,
            pause_seconds=settings.max_pause_seconds,
            forget_seconds=settings.forget_runner_seconds,
            grow_seconds=settings.grow_seconds,
        )

    def of(self, phase: Phase, now: datetime) -> datetime | None:
        """When a phase entered now must have ended; None: it may last."""
        seconds = {
            Phase.STARTING: self.start_seconds,
            **dict.fromkeys(LEAVING, self.stop_seconds),
            Phase.PAUSED: self.pause_seconds,
            **dict.fromkeys(_RELEASING | {Phase.RECOVERING}, RELEASE_SECONDS),
        }.get(phase)
        return None if seconds is None else now + timedelta(seconds=seconds)


def move(
    session: Session,
    job: JobRow,
    signal: Signal,
    *,
    now: datetime,
    deadlines: Deadlines,
    reason: Reason | None = None,
    message: str = "",
) -> None:
    """Apply a signal; raises Refused when the phase does not take it.

    A repeated signal that leads nowhere new changes nothing, version included.
    """
    before = Phase(job.phase)
    after = next_phase(before, signal)
    if after == before:
        return
    job.phase = after
    job.version += 1
    job.deadline_at = deadlines.of(after, now)
    job.reason, job.message = _explain(job, after, reason, message)
    job.ended_at = now if is_terminal(after) else None
    text = f"{before} -> {after}" + (f": {job.message}" if job.message else "")
    events.add(session, job, code=f"phase.{after.lower()}", message=text, at=now)
    settle(session, job, now=now, deadlines=deadlines)


def settle(session: Session, job: JobRow, *, now: datetime, deadlines: Deadlines) -> None:
    """Finish a phase that only waits for seats to be released, when none is held."""
    session.flush()
    phase = Phase(job.phase)
    waits = phase in _RELEASING or (phase in LEAVING and _has_ended(session, job))
    if waits and not attempts.holds_anything(session, job.id):
        assert is_allowed(phase, Signal.RELEASE)
        move(session, job, Signal.RELEASE, now=now, deadlines=deadlines)


def _has_ended(session: Session, job: JobRow) -> bool:
    attempt = attempts.newest(session, job.id)
    return attempt is None or attempt.ended_at is not None


def _explain(
    job: JobRow, after: Phase, reason: Reason | None, message: str
) -> tuple[str | None, str | None]:
    """The reason stays from the -ING phase to the end; a job that runs needs none."""
    if reason is not None:
        return reason, message or None
    if is_terminal(after) or after is Phase.PAUSED:
        return job.reason, job.message
    return None, None
