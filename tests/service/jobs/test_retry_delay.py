"""A fault that every attempt meets does not use all of them up before it has passed."""

from dataclasses import replace
from datetime import timedelta

import pytest
from played import state_event
from stage import DEADLINES, staged

from roadless.service.jobs.transitions import LONGEST_RETRY_DELAY_SECONDS
from roadless.service.jobs.views import job_resource

LOST = {"kind": "failed", "reason": "worker_error", "message": "it broke", "seq": 1}


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        stage.thaw()
        yield stage


def lose(stage, runner_id, *events):
    """The waiting job starts and its attempt is lost; its seats are free again."""
    attempt = stage.claim(runner_id)
    stage.report(attempt.token, *events, {**LOST, "seq": len(events) + 1})
    stage.sync(runner_id, released=[attempt.attempt_id], free_cpus=0)


def seconds_until_claimed(stage, runner_id):
    """How long the job waits for its next attempt while there is room for it."""
    for second in range(200):
        if stage.sync(runner_id).start:
            return second
        stage.pass_time(1)
    raise AssertionError("it was never claimed")


def test_the_first_loss_is_replaced_at_once_and_each_further_one_later(stage, digits_spec):
    runner_id = stage.register()
    job_id = stage.submit({**digits_spec, "retry": {"max_attempts": 10}})
    waited = []
    for _ in range(9):
        lose(stage, runner_id)
        waited.append(seconds_until_claimed(stage, runner_id))
    assert waited == [0, 2, 4, 8, 16, 32, 60, 60, 60]
    assert stage.codes(job_id).count("attempt.delayed") == 8
    assert stage.job(job_id).phase == "STARTING"


def test_the_job_says_why_and_until_when_it_waits(stage, digits_spec):
    runner_id = stage.register()
    job_id = stage.submit(digits_spec)
    for _ in range(2):
        lose(stage, runner_id)
    job = stage.job(job_id)
    assert (job.phase, job.reason) == ("RECOVERING", "worker_error")
    assert job.not_before == stage.now + timedelta(seconds=2)
    message = f"it broke; the next attempt starts at {job.not_before:%H:%M:%S} UTC"
    assert job_resource(job, None).message == message
    stage.pass_time(2)
    stage.claim(runner_id)
    assert stage.job(job_id).not_before is None
    assert job_resource(stage.job(job_id), None).message is None


def test_a_training_state_gained_makes_the_next_loss_a_first_one(stage, digits_spec):
    runner_id = stage.register()
    job_id = stage.submit(digits_spec)
    for _ in range(3):
        lose(stage, runner_id)
        stage.pass_time(60)
    attempt = stage.claim(runner_id)
    stage.report(attempt.token, {**state_event(attempt, 1), "seq": 1}, {**LOST, "seq": 2})
    assert stage.job(job_id).not_before is None
    assert stage.claim(runner_id, released=[attempt.attempt_id]).fence == 5


@pytest.mark.parametrize(
    ("request_", "phase"), [("cancel", "CANCELLED"), ("pause", "PAUSED"), ("stop", "STARTING")]
)
def test_a_users_wish_does_not_wait(stage, digits_spec, request_, phase):
    """A stop needs one more attempt, which evaluates and saves: it is claimed at once."""
    runner_id = stage.register()
    job_id = stage.submit({**digits_spec, "retry": {"max_attempts": 9}})
    for _ in range(5):
        lose(stage, runner_id)
        stage.pass_time(0 if stage.job(job_id).losses_in_a_row == 5 else 60)
    assert stage.sync(runner_id).start == []
    getattr(stage, request_)(job_id)
    stage.sync(runner_id)
    assert stage.job(job_id).phase == phase


def test_a_retry_of_a_failed_job_starts_at_once(stage, digits_spec):
    runner_id = stage.register()
    job_id = stage.submit({**digits_spec, "retry": {"max_attempts": 3}})
    for _ in range(3):
        lose(stage, runner_id)
        stage.pass_time(60)
    assert (stage.job(job_id).phase, stage.job(job_id).not_before) == ("FAILED", None)
    stage.retry(job_id)
    assert seconds_until_claimed(stage, runner_id) == 0


def test_an_attempt_that_left_to_grow_is_no_loss_and_delays_nothing(stage, digits_spec):
    runner_id = stage.register()
    job_id = stage.submit(digits_spec)
    for _ in range(2):
        lose(stage, runner_id)
        stage.pass_time(60)
    attempt = stage.claim(runner_id)
    resized = {"kind": "finished", "reason": "resized", "step": 1, "seq": 1}
    stage.report(attempt.token, resized)
    assert (stage.job(job_id).phase, stage.job(job_id).not_before) == ("RECOVERING", None)


def test_a_job_that_waits_hides_none_behind_it(stage, digits_spec):
    runner_id = stage.register()
    stage.submit({**digits_spec, "priority": 5})
    for _ in range(2):
        lose(stage, runner_id)
    other = stage.submit(digits_spec)
    assert stage.claim(runner_id).job_id == other


def test_delays_have_a_bound_whatever_they_begin_with():
    deadlines = replace(DEADLINES, retry_delay_seconds=50)
    assert [deadlines.retry_delay(losses) for losses in (0, 1, 2, 3, 1000)] == [
        0,
        0,
        50,
        LONGEST_RETRY_DELAY_SECONDS,
        LONGEST_RETRY_DELAY_SECONDS,
    ]
    none = replace(DEADLINES, retry_delay_seconds=0)
    assert {none.retry_delay(losses) for losses in range(50)} == {0}
