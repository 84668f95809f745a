"""What depends on time: leases that expire, phases that take too long, and why a job waits."""

from datetime import timedelta

from roadless.service.attempts import store as attempts
from roadless.service.contract.states import Desired, Phase, Reason, Signal
from roadless.service.db.tables import JobRow
from roadless.service.events import store as events
from roadless.service.jobs.transitions import end_attempt, move, settle
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
            message=f"no heartbeat for {tick.lease.seconds:g} s",
        )
    return len(silent)


def end_overdue_phases(tick: Tick) -> int:
    """Act on phases past their deadline; return how many."""
    if not tick.lease.may_expire(tick.now):
        return 0
    late = store.overdue(tick.session, now=tick.now, limit=BATCH)
    for job in late:
        _act_on(tick, job)
    return len(late)


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
    if not attempts.holds_anything(tick.session, job.id):
        return  # a job that recovers, and waits for capacity
    events.add(
        tick.session,
        job,
        code="release.overdue",
        message=f"{job.phase}: no runner has confirmed yet that the resources are released",
        at=tick.now,
    )


def explain_waiting(tick: Tick) -> None:
    """Record for each queued job whether it waits for capacity or for any runner at all."""
    if store.has_runner(tick.session, since=tick.lease.silent_since(tick.now)):
        reason, message = Reason.WAITING_FOR_CAPACITY, "not enough free capacity for its workers"
    else:
        reason, message = (
            Reason.NO_RUNNER,
            f"no runner has connected in the last {tick.lease.seconds:g} s",
        )
    store.explain_queued(tick.session, reason=reason, message=message)
