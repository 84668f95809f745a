"""Which training state the next attempt goes on from, above all when the newest does not load."""

import pytest
from played import step_event

UNREADABLE = {"kind": "failed", "reason": "checkpoint_unreadable", "message": "hash differs"}


def lose(service, rank, event=None):
    """End the attempt and give its seats back; nothing is free to start another."""
    if event is None:
        rank.ended()
    else:
        rank.report(event)
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})


def resumed_step(rank):
    return rank.brief()["resume"]["step"]


@pytest.fixture
def lost(service, digits_spec):
    """A job that was lost with the states of steps 10 and 20."""
    job_id, rank = service.running(digits_spec, steps=25)
    rank.save(10, kind="resume")
    rank.save(20, kind="resume")
    lose(service, rank)
    return job_id


def told(service, job_id):
    events = service.get(f"/jobs/{job_id}/events").json()["data"]
    return [event["message"] for event in events if event["code"] == "checkpoint.set_aside"]


def test_a_state_that_does_not_load_gives_way_to_the_older_one(service, lost):
    second = service.claim()
    newest = second.brief()["resume"]["checkpoint_id"]
    assert resumed_step(second) == 20
    lose(service, second, UNREADABLE)
    third = service.claim()
    assert resumed_step(third) == 10
    (message,) = told(service, lost)
    assert newest in message
    assert "of step 20 failed to load" in message
    third.report(step_event(11))
    assert service.job(lost)["progress"]["step"] == 11


def test_the_next_state_that_is_saved_is_the_newest_again(service, lost):
    lose(service, service.claim(), UNREADABLE)
    third = service.claim()
    third.save(15, kind="resume")
    lose(service, third)
    assert resumed_step(service.claim()) == 15


def test_when_no_state_loads_the_job_fails_and_says_why(service, lost):
    steps = []
    for _ in range(4):
        rank = service.claim()
        steps.append(resumed_step(rank))
        lose(service, rank, UNREADABLE)
    assert steps[:2] == [20, 10]
    job = service.job(lost)
    assert (job["phase"], job["reason"]) == ("FAILED", "retries_exhausted")
    assert "hash differs" in job["message"]


def test_another_ending_sets_no_state_aside(service, lost):
    lose(service, service.claim())
    assert resumed_step(service.claim()) == 20
    assert told(service, lost) == []


def test_the_only_state_is_tried_again(service, digits_spec):
    job_id, rank = service.running(digits_spec, steps=25)
    rank.save(10, kind="resume")
    lose(service, rank)
    lose(service, service.claim(), UNREADABLE)
    assert resumed_step(service.claim()) == 10
    assert told(service, job_id) == []
