"""What depends on time: leases that expire, phases that take too long, and why a job waits."""

from datetime import datetime, timedelta

from roadless.service.attempts import store as attempts
from roadless.service.contract.states import Desired, Phase, Reason, Signal
from roadless.service.db.tables import AttemptRow, JobRow
from roadless.service.events import store as events
from roadless.service.jobs.transitions import RELEASE_SECONDS, end_attempt, move, settle
from roadless.service.scheduling import store
from roadless.service.scheduling.sync import Tick

#: How many rows one tick handles of each kind; the next tick takes the rest.
BATCH = 100


def expire_leases(tick: Tick) -> int:
    """End attempts that were silent for a whole lease; return how many."""
    if not tick.lease.may_expire(tick.now):
        return 0
    silent = attempts.expired(tick.session, now=tick.now, limit=BATCH)
    for job, attempt in silent:
        end_attempt(
            tick,
            job,
            attempt,
            reason=Reason.LEASE_EXPIRED,
            message=_silence(tick, job, attempt),
        )
    return len(silent)


def _silence(tick: Tick, job: JobRow, attempt: AttemptRow) -> str:
    """Who was silent, and for how long."""
    silent_since, moved_at = tick.lease.silent_since(tick.now), attempt.moved_at
    is_runner_silent = store.last_seen(tick.session, attempt.runner_id) < silent_since
    if attempt.heard_at is None:
        silence = f"no rank has reported in {_seconds(tick, attempt.created_at)} since it began"
        return f"{silence}, and its runner is silent" if is_runner_silent else silence
    silence = f"no news from any rank for {_seconds(tick, attempt.heard_at)}"
    if is_runner_silent:
        return f"{silence}, nor from their runner"
    if moved_at is None or moved_at < silent_since:
        return f"{silence}; they use no processor time"
    hang_seconds = attempts.hang_seconds(tick.session, {job.id})[job.id]
    return f"{silence} although they use processor time; a step may take {hang_seconds:g} s"


def _seconds(tick: Tick, since: datetime) -> str:
    return f"{(tick.now - since).total_seconds():.0f} s"


def end_overdue_phases(tick: Tick) -> int:
    """Act on phases past their deadline; return how many."""
    if not tick.lease.may_expire(tick.now):
        return 0
    late = store.overdue(tick.session, now=tick.now, limit=BATCH)
    for job in late:
        _act_on(tick, job)
    return len(late)


_NOT_RELEASED = "no runner has confirmed yet that the resources are released"

#: Why an attempt ends when its job has been in this phase for too long.
_REASON_OF_OVERDUE = {
    Phase.STARTING: Reason.START_TIMEOUT,
    Phase.STOPPING: Reason.STOPPED_BY_USER,
    Phase.PAUSING: Reason.PAUSED_BY_USER,
}


def _act_on(tick: Tick, job: JobRow) -> None:
    if job.phase == Phase.PAUSED:
        _end_pause(tick, job)
        return
    attempt = attempts.newest(tick.session, job.id)
    if job.phase == Phase.RECOVERING:
        _say_what_recovery_waits_for(tick, job, attempt)
        return
    if attempt is None or attempt.ended_at is not None:
        _note_overdue_release(tick, job)
        return
    end_attempt(
        tick,
        job,
        attempt,
        reason=_REASON_OF_OVERDUE[Phase(job.phase)],
        message=f"{job.phase} exceeded its deadline",
    )


def _end_pause(tick: Tick, job: JobRow) -> None:
    """Nobody has resumed it in time. It keeps its training state, and can still be resumed."""
    move(
        tick,
        job,
        Signal.STOP,
        reason=Reason.PAUSE_EXPIRED,
        message=f"paused for more than {tick.deadlines.pause_seconds:g} s",
    )
    job.desired = Desired.STOP


def forget_runners(tick: Tick) -> int:
    """Count as released what runners that are gone for good held; return how many attempts.

    Only attempts that have ended: while ranks report, their runner may be away for a long time.
    """
    seconds = tick.deadlines.forget_seconds
    if seconds is None or not tick.lease.may_expire(tick.now):
        return 0
    since = tick.now - timedelta(seconds=seconds)
    forgotten = store.held_by_silent(tick.session, since=since, limit=BATCH)
    for job, attempt, runner_name in forgotten:
        attempt.released_at = tick.now
        events.add(
            tick.session,
            job,
            code="runner.forgotten",
            message=f"runner {runner_name!r} was silent for {seconds:g} s; its resources "
            "count as released",
            at=tick.now,
            attempt_id=attempt.id,
        )
        settle(tick, job)
    return len(forgotten)


def _note_overdue_release(tick: Tick, job: JobRow) -> None:
    """Seats are not known to be free: say so once and keep waiting, since terminal needs proof."""
    job.deadline_at = None
    if attempts.holds_anything(tick.session, job.id):
        _note(tick, job, "release.overdue", _NOT_RELEASED)


def _say_what_recovery_waits_for(tick: Tick, job: JobRow, lost: AttemptRow | None) -> None:
    """A recovery may wait for as long as there is no room for it, but says for what it does."""
    job.deadline_at = tick.now + timedelta(seconds=RELEASE_SECONDS)
    if attempts.holds_anything(tick.session, job.id):
        code, wait = "release.overdue", _NOT_RELEASED
    elif job.not_before is not None and job.not_before > tick.now:
        return
    else:
        code, (_, wait) = "recovery.waiting", _why_waiting(tick)
    message = f"{lost.message}; {wait}" if lost is not None and lost.message else wait
    if message != job.message:
        job.message = message
        _note(tick, job, code, wait)


def _note(tick: Tick, job: JobRow, code: str, message: str) -> None:
    events.add(tick.session, job, code=code, message=f"{job.phase}: {message}", at=tick.now)


def explain_waiting(tick: Tick) -> None:
    """Record for each queued job whether it waits for capacity or for any runner at all."""
    reason, message = _why_waiting(tick)
    store.explain_queued(tick.session, reason=reason, message=message)


def _why_waiting(tick: Tick) -> tuple[Reason, str]:
    if store.has_runner(tick.session, since=tick.lease.silent_since(tick.now)):
        return Reason.WAITING_FOR_CAPACITY, "not enough free capacity for its workers"
    return (
        Reason.NO_RUNNER,
        f"no runner has connected in the last {tick.lease.seconds:g} s",
    )
