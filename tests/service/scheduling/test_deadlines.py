"""P4: nothing hangs unseen. Time is the test's own, so half an hour takes no time."""

from dataclasses import replace
from datetime import timedelta

import pytest
from played import step_event
from stage import DEADLINES, LEASE_SECONDS, START, staged

from roadless.service.attempts.leases import LeaseKeeper, LeasePolicy
from roadless.service.errors import Fenced
from roadless.service.jobs.transitions import RELEASE_SECONDS


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        yield stage


@pytest.fixture
def attempt(stage, digits_spec):
    """A job that runs, claimed once the first, frozen lease was over."""
    return running(stage, digits_spec)


def running(stage, spec):
    stage.thaw()
    stage.submit(spec)
    assignment = stage.claim(stage.register())
    stage.report(assignment.token, {**step_event(1), "seq": 1})
    return assignment


def say(stage, attempt, *events):
    stage.report(attempt.token, *events)


# ---- leases --------------------------------------------------------------------------------------


def test_a_silent_attempt_is_lost_within_two_seconds_after_its_lease(stage, attempt):
    """P9: recovery begins within lease + 2 s."""
    stage.live(LEASE_SECONDS)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    stage.live(2)
    job = stage.job(attempt.job_id)
    assert (job.phase, job.reason) == ("RECOVERING", "lease_expired")
    assert job.message == "no news from any rank for 31 s, nor from their runner"
    with pytest.raises(Fenced):
        say(stage, attempt)


def test_heartbeats_keep_an_attempt_without_its_runner(stage, attempt):
    for _ in range(6):
        stage.live(LEASE_SECONDS - 1)
        say(stage, attempt)
    assert stage.job(attempt.job_id).phase == "RUNNING"


def under_a_runner(stage, seconds, *, still_seconds=None, every=1):
    """Time passes while the runner lists every open attempt, whose ranks move unless told so."""
    runner_id = stage.register()
    for passed in range(every, int(seconds) + 1, every):
        stage.pass_time(every)
        alive = [row.id for row in stage.attempts() if row.ended_at is None]
        still = None if still_seconds is None else dict.fromkeys(alive, still_seconds + passed)
        stage.sync(runner_id, alive=alive, still_seconds=still, free_cpus=0)
        stage.tick()


@pytest.mark.parametrize("request_", ["none", "stop", "pause"])
def test_a_runner_that_lists_frozen_ranks_does_not_keep_their_attempt(stage, attempt, request_):
    """Stopped processes are alive to the kernel; in STOPPING and PAUSING as well."""
    if request_ != "none":
        getattr(stage, request_)(attempt.job_id)
    under_a_runner(stage, LEASE_SECONDS - 1, still_seconds=0.0)
    (row,) = stage.attempts()
    assert row.ended_at is None
    under_a_runner(stage, 3, still_seconds=LEASE_SECONDS - 1)
    (row,) = stage.attempts()
    assert row.reason == "lease_expired"
    assert row.message == "no news from any rank for 31 s; they use no processor time"


def test_a_runner_of_an_older_release_cannot_tell_and_keeps_none(stage, attempt):
    runner_id = stage.register()
    for _ in range(int(LEASE_SECONDS) + 2):
        stage.pass_time(1)
        alive = [row.id for row in stage.attempts() if row.ended_at is None]
        stage.sync(runner_id, alive=alive, still_seconds={}, free_cpus=0)
        stage.tick()
    assert stage.job(attempt.job_id).reason == "lease_expired"


def test_a_long_call_that_lets_nothing_else_run_is_no_silence(stage, digits_spec):
    """Native code that holds the interpreter's lock: no thread reports, but the ranks compute."""
    attempt = running(stage, {**digits_spec, "retry": {"hang_seconds": 300}})
    under_a_runner(stage, 295, every=5)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    say(stage, attempt)
    under_a_runner(stage, 295, every=5)
    assert stage.job(attempt.job_id).phase == "RUNNING"


def test_ranks_that_compute_unheard_are_given_up_after_the_longest_step(stage, digits_spec):
    """Their reports are refused, or lost, so what they compute is of no use."""
    attempt = running(stage, {**digits_spec, "retry": {"hang_seconds": 300}})
    under_a_runner(stage, 295, every=5)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    under_a_runner(stage, 10, every=5)
    job = stage.job(attempt.job_id)
    assert (job.phase, job.reason) == ("RECOVERING", "lease_expired")
    assert job.message.startswith("no news from any rank for 305 s although they use processor")
    assert "300 s" in job.message


def test_a_lease_longer_than_a_step_may_take_is_not_cut_short(stage, digits_spec):
    attempt = running(stage, {**digits_spec, "retry": {"hang_seconds": 5}})
    under_a_runner(stage, LEASE_SECONDS - 1)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    under_a_runner(stage, 3)
    assert stage.job(attempt.job_id).reason == "lease_expired"


def test_ranks_that_stand_still_have_a_whole_lease_from_when_they_last_moved(stage, digits_spec):
    attempt = running(stage, {**digits_spec, "retry": {"hang_seconds": 300}})
    under_a_runner(stage, 100, every=5)
    under_a_runner(stage, LEASE_SECONDS - 1, still_seconds=0.0)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    under_a_runner(stage, 3, still_seconds=LEASE_SECONDS - 1)
    job = stage.job(attempt.job_id)
    assert job.message == "no news from any rank for 131 s; they use no processor time"


def test_a_runner_keeps_what_it_starts_until_the_first_report(stage, digits_spec):
    """Nothing moves while a model's environment is built, say; the deadline of STARTING holds."""
    stage.thaw()
    job_id = stage.submit(digits_spec)
    stage.claim(stage.register())
    under_a_runner(stage, 2 * LEASE_SECONDS, still_seconds=0.0)
    assert stage.job(job_id).phase == "STARTING"
    stage.live(LEASE_SECONDS + 2)
    job = stage.job(job_id)
    assert (job.phase, job.reason) == ("RECOVERING", "lease_expired")
    assert job.message == "no rank has reported in 91 s since it began, and its runner is silent"


@pytest.mark.parametrize("request_", ["stop", "pause"])
def test_ranks_that_never_report_are_not_waited_for_because_their_job_is_to_end(
    stage, digits_spec, request_
):
    stage.thaw()
    job_id = stage.submit(digits_spec)
    stage.claim(stage.register())
    getattr(stage, request_)(job_id)
    under_a_runner(stage, DEADLINES.start_seconds, still_seconds=0.0, every=5)
    assert stage.attempts()[0].ended_at is None
    under_a_runner(stage, LEASE_SECONDS + 1, still_seconds=DEADLINES.start_seconds)
    (row,) = stage.attempts()
    assert (row.reason, row.message) == (
        "lease_expired",
        "no rank has reported in 151 s since it began",
    )


def test_after_an_outage_ranks_that_only_compute_have_a_lease_to_speak_again(stage, digits_spec):
    attempt = running(stage, {**digits_spec, "retry": {"hang_seconds": 60}})
    stage.pass_time(3600)  # the service was away, so nobody was heard
    stage.tick()
    under_a_runner(stage, LEASE_SECONDS - 1)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    under_a_runner(stage, 3)
    assert stage.job(attempt.job_id).phase == "RECOVERING"


def test_an_expired_attempt_is_ended_once(stage, attempt):
    stage.live(LEASE_SECONDS + 5)
    assert stage.codes(attempt.job_id).count("attempt.lease_expired") == 1
    assert stage.job(attempt.job_id).losses_in_a_row == 1


def test_no_lease_expires_before_the_service_has_listened_for_one(stage, digits_spec):
    stage.submit(digits_spec)
    assignment = stage.claim(stage.register())
    (attempt,) = stage.attempts()
    with stage.db.write() as session:  # silent since long before the start
        session.merge(attempt).lease_until = START - timedelta(days=1)
    stage.live(LEASE_SECONDS - 1)
    assert stage.job(assignment.job_id).phase == "STARTING"
    stage.live(2)
    assert stage.job(assignment.job_id).phase == "RECOVERING"


def test_a_database_that_was_away_freezes_leases_anew(stage, attempt):
    for _ in range(60):  # as the loop does with each tick that fails
        stage.pass_time(1)
        stage.keeper.freeze(stage.now)
    stage.live(LEASE_SECONDS - 1)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    stage.live(2)
    assert stage.job(attempt.job_id).phase == "RECOVERING"


@pytest.mark.parametrize("seconds", [20, 60, 3600])
def test_a_service_that_was_suspended_gives_every_attempt_a_new_lease(stage, attempt, seconds):
    """A paused machine heard nobody; its reports may lie in the socket still."""
    stage.live(1)
    stage.pass_time(seconds)
    stage.live(LEASE_SECONDS - 1)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    say(stage, attempt)
    stage.live(LEASE_SECONDS + 2)
    assert stage.job(attempt.job_id).phase == "RECOVERING"


def test_a_short_pause_prolongs_no_lease(stage, attempt):
    stage.live(1)
    stage.pass_time(LEASE_SECONDS / 2 - 2)
    stage.live(LEASE_SECONDS / 2 + 4)
    assert stage.job(attempt.job_id).phase == "RECOVERING"


def test_a_slow_loop_is_not_taken_for_a_suspended_one():
    keeper = LeaseKeeper.starting(START, seconds=1.0, look_every_seconds=10.0)
    late = START + timedelta(seconds=10)
    assert keeper.look(late).may_expire(late)


def test_a_lease_is_frozen_to_the_end_and_not_beyond():
    policy = LeasePolicy.starting(START, seconds=30)
    just_before, at = START + timedelta(seconds=29.9), START + timedelta(seconds=30)
    assert (policy.may_expire(just_before), policy.may_expire(at)) == (False, True)
    assert policy.silent_since(at) == START
    assert policy.silent_since(just_before).year == 1


def test_many_silent_attempts_are_ended_in_turns(stage, digits_spec, monkeypatch):
    monkeypatch.setattr("roadless.service.scheduling.deadlines.BATCH", 2)
    stage.thaw()
    for _ in range(5):
        stage.submit({**digits_spec, "parallelism": {"num_workers": 1}})
    assert len(stage.sync(stage.register(), free_cpus=5).start) == 5
    stage.live(LEASE_SECONDS)
    stage.pass_time(1)
    assert [stage.tick() for _ in range(4)] == [2, 2, 1, 0]


# ---- phases --------------------------------------------------------------------------------------


def keep_alive(stage, seconds):
    """Time passes while the runner sees every open attempt, and its ranks report."""
    runner_id = stage.register()
    whole, rest = divmod(seconds, 5)
    for step in [5] * int(whole) + [rest]:
        stage.pass_time(step)
        stage.heartbeats()
        alive = [row.id for row in stage.attempts() if row.ended_at is None]
        stage.sync(runner_id, alive=alive, free_cpus=0)
        stage.tick()


def test_an_attempt_that_never_steps_is_given_up(stage, digits_spec):
    stage.thaw()
    job_id = stage.submit(digits_spec)
    stage.claim(stage.register())
    keep_alive(stage, DEADLINES.start_seconds - 1)
    assert stage.job(job_id).phase == "STARTING"
    keep_alive(stage, 3)
    job = stage.job(job_id)
    assert (job.phase, job.reason) == ("RECOVERING", "start_timeout")


def test_a_step_in_time_ends_the_deadline_of_starting(stage, attempt):
    assert stage.job(attempt.job_id).deadline_at is None
    keep_alive(stage, DEADLINES.start_seconds + 5)
    assert stage.job(attempt.job_id).phase == "RUNNING"


def test_a_stop_that_takes_too_long_ends_the_attempt(stage, attempt):
    stage.stop(attempt.job_id)
    keep_alive(stage, DEADLINES.stop_seconds - 1)
    (row,) = stage.attempts()
    assert (stage.job(attempt.job_id).phase, row.ended_at) == ("STOPPING", None)
    keep_alive(stage, 3)
    (row,) = stage.attempts()
    assert (row.reason, row.released_at) == ("stopped_by_user", None)
    stage.sync(row.runner_id, released=[row.id])
    job = stage.job(attempt.job_id)
    assert (job.phase, job.reason) == ("STOPPED", "stopped_by_user")


@pytest.mark.parametrize("how", ["stop", "cancel", "fail", "finish", "lose"])
def test_seats_that_are_not_released_are_told_of_once(stage, attempt, how):
    event = {
        "fail": {"kind": "failed", "reason": "non_finite_loss", "message": "", "seq": 2},
        "finish": {"kind": "finished", "reason": "budget_reached", "step": 1, "seq": 2},
        "stop": {"kind": "finished", "reason": "stopped_by_user", "step": 1, "seq": 2},
        "lose": {"kind": "failed", "reason": "worker_error", "message": "", "seq": 2},
    }
    if how == "stop":
        stage.stop(attempt.job_id)
    if how == "cancel":
        stage.cancel(attempt.job_id)
    else:
        say(stage, attempt, event[how])
    before = stage.job(attempt.job_id).phase
    keep_alive(stage, RELEASE_SECONDS - 1)
    assert "release.overdue" not in stage.codes(attempt.job_id)
    keep_alive(stage, RELEASE_SECONDS * 3)
    assert stage.codes(attempt.job_id).count("release.overdue") == 1
    assert stage.job(attempt.job_id).phase == before, "terminal needs proof"


def test_a_job_that_waits_for_capacity_to_recover_says_so_and_is_not_called_overdue(stage, attempt):
    (row,) = stage.attempts()
    lost = {"kind": "failed", "reason": "worker_error", "message": "it broke", "seq": 2}
    say(stage, attempt, lost)
    stage.sync(row.runner_id, released=[row.id], free_cpus=0)
    keep_alive(stage, RELEASE_SECONDS - 1)
    assert stage.job(attempt.job_id).message == "it broke"
    keep_alive(stage, RELEASE_SECONDS * 3)
    assert "release.overdue" not in stage.codes(attempt.job_id)
    assert stage.codes(attempt.job_id).count("recovery.waiting") == 1
    job = stage.job(attempt.job_id)
    assert (job.phase, job.reason) == ("RECOVERING", "worker_error")
    assert job.message == "it broke; not enough free capacity for its workers"


def test_a_job_that_recovers_says_whatever_it_waits_for_now(stage, attempt):
    """First for the seats of a silent cluster, then for any runner, then for room."""
    (row,) = stage.attempts()
    stage.live(LEASE_SECONDS + 2)
    lost = stage.job(attempt.job_id).message
    stage.live(RELEASE_SECONDS + 2)
    wait = "no runner has confirmed yet that the resources are released"
    assert stage.job(attempt.job_id).message == f"{lost}; {wait}"
    stage.sync(row.runner_id, released=[row.id], free_cpus=0)
    stage.live(LEASE_SECONDS + RELEASE_SECONDS + 2)
    wait = "no runner has connected in the last 30 s"
    assert stage.job(attempt.job_id).message == f"{lost}; {wait}"
    keep_alive(stage, RELEASE_SECONDS + 5)
    wait = "not enough free capacity for its workers"
    assert stage.job(attempt.job_id).message == f"{lost}; {wait}"
    assert stage.claim(row.runner_id).fence == 2


def test_deadlines_wait_for_a_frozen_lease(stage, digits_spec):
    stage.thaw()
    job_id = stage.submit(digits_spec)
    stage.claim(stage.register())
    stage.pass_time(DEADLINES.start_seconds + 60)  # suspended for longer than STARTING may take
    stage.live(LEASE_SECONDS - 1)
    assert stage.job(job_id).phase == "STARTING"
    stage.live(2)
    assert stage.job(job_id).phase == "RECOVERING"


# ---- clusters that are gone for good -------------------------------------------------------------


def test_a_runner_that_is_forgotten_releases_what_it_held(stage, attempt):
    """The operator's way out: a job may end although its cluster never says so."""
    stage.cancel(attempt.job_id)
    stage.deadlines = replace(DEADLINES, forget_seconds=100)
    stage.live(95)
    assert stage.job(attempt.job_id).phase == "CANCELLING"
    stage.live(10)
    assert stage.job(attempt.job_id).phase == "CANCELLED"
    assert stage.codes(attempt.job_id).count("runner.forgotten") == 1
    assert stage.tick() == 0


def test_no_runner_is_forgotten_unless_the_operator_says_so(stage, attempt):
    stage.cancel(attempt.job_id)
    stage.live(300)
    assert stage.job(attempt.job_id).phase == "CANCELLING"


def test_ranks_that_report_outlive_a_runner_that_is_forgotten(stage, attempt):
    stage.deadlines = replace(DEADLINES, forget_seconds=100)
    for _ in range(8):
        stage.live(20)
        say(stage, attempt)
    assert stage.job(attempt.job_id).phase == "RUNNING"
    assert [row.released_at for row in stage.attempts()] == [None]


def test_a_runner_that_speaks_is_not_forgotten_however_long_a_release_takes(stage, attempt):
    (row,) = stage.attempts()
    stage.cancel(attempt.job_id)
    stage.deadlines = replace(DEADLINES, forget_seconds=100)
    for _ in range(8):
        stage.live(20)
        stage.sync(row.runner_id, alive=[row.id])
    assert stage.job(attempt.job_id).phase == "CANCELLING"


def test_a_forgotten_runner_that_comes_back_is_told_to_let_go(stage, attempt):
    (row,) = stage.attempts()
    stage.cancel(attempt.job_id)
    stage.deadlines = replace(DEADLINES, forget_seconds=100)
    stage.live(105)
    reply = stage.sync(row.runner_id, alive=[row.id])
    assert (reply.start, reply.stop) == ([], [row.id])


# ---- why a job waits -----------------------------------------------------------------------------


def test_a_job_without_any_runner_says_so(stage, digits_spec):
    stage.thaw()
    job_ids = [stage.submit(digits_spec) for _ in range(3)]
    stage.tick()
    assert {stage.job(job_id).reason for job_id in job_ids} == {"no_runner"}
    stage.sync(stage.register(), free_cpus=0)
    stage.tick()
    assert {stage.job(job_id).reason for job_id in job_ids} == {"waiting_for_capacity"}
    stage.live(LEASE_SECONDS + 2)
    job = stage.job(job_ids[0])
    assert (job.reason, job.message) == ("no_runner", "no runner has connected in the last 30 s")


def test_only_jobs_that_wait_in_the_queue_are_explained(stage, attempt, digits_spec):
    waiting = stage.submit(digits_spec)
    stage.live(LEASE_SECONDS * 2)
    assert stage.job(waiting).reason == "no_runner"
    assert stage.job(attempt.job_id).reason == "lease_expired"


def test_a_queued_job_may_wait_for_ever(stage, digits_spec):
    job_id = stage.submit(digits_spec)
    stage.thaw()
    stage.live(5)
    job = stage.job(job_id)
    assert (job.phase, job.deadline_at, job.version) == ("QUEUED", None, 1)


def test_a_tick_with_nothing_to_do_ends_nothing(stage, attempt):
    assert stage.tick() == 0
