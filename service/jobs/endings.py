"""An attempt ends: what that means for its job. The one recovery path."""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.contract.states import REACHED, RETRYABLE, Phase, Reason, Signal
from service.db.tables import AttemptRow, JobRow
from service.events import store as events
from service.jobs.lifecycle import is_allowed
from service.jobs.moves import LEAVING, RELEASE_SECONDS, Deadlines, move, settle

_SIGNAL_OF = {
    **dict.fromkeys(REACHED, Signal.BUDGET_REACHED),
    Reason.STOPPED_BY_USER: Signal.STOP_DONE,
    Reason.PAUSED_BY_USER: Signal.PAUSE_DONE,
}


def end_attempt(
    session: Session,
    job: JobRow,
    attempt: AttemptRow,
    *,
    reason: Reason,
    message: str,
    now: datetime,
    deadlines: Deadlines,
    goes_on: bool = False,
) -> None:
    """Fence the attempt off and move its job on, which must be locked.

    An attempt that has ended stays as it is. ``goes_on``: what ended it holds no more, for instance
    a budget that was extended at the same time, so another attempt follows.
    """
    if attempt.ended_at is not None:
        return
    attempt.ended_at, attempt.reason, attempt.message = now, reason, message
    events.add(
        session,
        job,
        code=f"attempt.{reason}",
        message=message,
        at=now,
        attempt_id=attempt.id,
    )
    if goes_on:
        signal = Signal.LOSE
    else:
        signal, reason, message = _consequence(job, reason, message)
    if is_allowed(Phase(job.phase), signal):
        move(session, job, signal, now=now, deadlines=deadlines, reason=reason, message=message)
    if job.phase in LEAVING:  # which may end as it began, and now only waits for its seats
        job.deadline_at = now + timedelta(seconds=RELEASE_SECONDS)
    settle(session, job, now=now, deadlines=deadlines)


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
        f"{tries} attempts in a row were lost without a training state gained; the last: {message}"
    )
    return Signal.FAIL, Reason.RETRIES_EXHAUSTED, text
