"""A job that is paused holds nothing, waits for its user, and goes on where it was."""

from dataclasses import replace

import pytest
from played import step_event
from stage import DEADLINES, LEASE_SECONDS, staged

from roadless.service.errors import Fenced
from roadless.service.jobs.transitions import Refused

PAUSED = {"kind": "finished", "reason": "paused_by_user", "step": 20}


@pytest.fixture
def stage(database_url, tmp_path):
    with staged(database_url, tmp_path) as stage:
        yield stage


@pytest.fixture
def attempt(stage, digits_spec):
    """A job that runs, claimed once the first, frozen lease was over."""
    stage.thaw()
    stage.submit(digits_spec)
    assignment = stage.claim(stage.register())
    stage.report(assignment.token, {**step_event(1), "seq": 1})
    return assignment


def keep_alive(stage, seconds):
    """Time passes while the runner sees every open attempt, and its ranks report."""
    runner_id = stage.register()
    for _ in range(int(seconds) // 5):
        stage.pass_time(5)
        stage.heartbeats()
        alive = [row.id for row in stage.attempts() if row.ended_at is None]
        stage.sync(runner_id, alive=alive, free_cpus=0)
        stage.tick()


# ---- through the API -----------------------------------------------------------------------------


def test_a_pause_saves_leaves_and_is_over_when_the_seats_are_free(service, digits_spec):
    job_id, rank = service.running(digits_spec, steps=20)
    assert service.post(f"/jobs/{job_id}/pause").json()["phase"] == "PAUSING"
    assert rank.report(step_event(21)).json()["desired"] == "pause"
    rank.save(21, kind="resume")
    rank.report({**PAUSED, "step": 21})
    assert service.phase(job_id) == "PAUSING"
    service.sync(released=[rank.assignment["attempt_id"]])
    job = service.job(job_id)
    assert (job["phase"], job["reason"], job["desired"]) == ("PAUSED", "paused_by_user", "pause")
    assert job["ended_at"] is None


def test_a_resumed_job_goes_on_from_what_the_pause_saved(service, digits_spec):
    job_id, rank = service.running(digits_spec, steps=20)
    service.post(f"/jobs/{job_id}/pause")
    rank.save(20, kind="resume")
    rank.report(PAUSED)
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    answer = service.post(f"/jobs/{job_id}/resume")
    assert (answer.status_code, answer.json()["phase"]) == (202, "QUEUED")
    second = service.claim()
    assert (second.brief()["resume"]["step"], second.brief()["desired"]) == (20, "run")
    assert second.assignment["fence"] == 2


def test_a_pause_that_saves_nothing_fences_the_ranks_off_at_once(service, digits_spec):
    job_id, rank = service.running(digits_spec, steps=20)
    rank.save(10, kind="resume")
    service.post(f"/jobs/{job_id}/pause", json={"checkpoint": "latest"})
    assert rank.report(step_event(21)).status_code == 409
    attempt_id = rank.assignment["attempt_id"]
    assert service.sync(alive=[attempt_id])["stop"] == [attempt_id]
    service.sync(released=[attempt_id])
    assert service.phase(job_id) == "PAUSED"
    service.post(f"/jobs/{job_id}/resume")
    assert service.claim().brief()["resume"]["step"] == 10


def test_who_cannot_wait_for_the_save_may_ask_again_without_it(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    service.post(f"/jobs/{job_id}/pause")
    service.post(f"/jobs/{job_id}/pause", json={"checkpoint": "latest"})
    assert rank.report(step_event(2)).status_code == 409
    service.sync(released=[rank.assignment["attempt_id"]])
    assert service.phase(job_id) == "PAUSED"


def test_a_pause_can_be_repeated_and_so_can_a_resume(service, digits_spec):
    job_id = service.submit(digits_spec)
    assert service.post(f"/jobs/{job_id}/pause").json()["phase"] == "PAUSED"
    version = service.job(job_id)["version"]
    assert service.post(f"/jobs/{job_id}/pause").json()["version"] == version
    assert service.sync()["start"] == []
    assert service.post(f"/jobs/{job_id}/resume").json()["phase"] == "QUEUED"
    assert service.post(f"/jobs/{job_id}/resume").status_code == 202
    assert service.claim().assignment["fence"] == 1


@pytest.mark.parametrize("body", [{"checkpoint": "newest"}, {"save": True}])
def test_an_unknown_way_to_pause_is_refused(service, digits_spec, body):
    job_id = service.submit(digits_spec)
    assert service.post(f"/jobs/{job_id}/pause", json=body).status_code == 422
    assert service.phase(job_id) == "QUEUED"


@pytest.mark.parametrize(("verb", "phase"), [("stop", "STOPPED"), ("cancel", "CANCELLED")])
def test_a_paused_job_ends_at_once(service, digits_spec, verb, phase):
    job_id = service.submit(digits_spec)
    service.post(f"/jobs/{job_id}/pause")
    assert service.post(f"/jobs/{job_id}/{verb}").json()["phase"] == phase


def test_a_stop_takes_a_pause_over(service, digits_spec):
    """The ranks may have heard of the pause only: what they saved is what a stop saves."""
    job_id, rank = service.running(digits_spec, steps=20)
    service.post(f"/jobs/{job_id}/pause")
    assert service.post(f"/jobs/{job_id}/stop").json()["phase"] == "STOPPING"
    rank.report(PAUSED)
    service.sync(released=[rank.assignment["attempt_id"]])
    assert (service.phase(job_id), service.job(job_id)["reason"]) == ("STOPPED", "stopped_by_user")


def test_a_stopped_job_can_be_resumed_as_it_stands(service, digits_spec):
    job_id, rank = service.running(digits_spec, steps=20)
    service.post(f"/jobs/{job_id}/stop")
    rank.save(20, kind="resume")
    rank.report({**PAUSED, "reason": "stopped_by_user"})
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    assert service.post(f"/jobs/{job_id}/resume").json()["ended_at"] is None
    assert service.claim().brief()["resume"]["step"] == 20


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_cancelled_job_is_neither_paused_nor_resumed(service, digits_spec, verb):
    job_id = service.submit(digits_spec)
    service.post(f"/jobs/{job_id}/cancel")
    answer = service.post(f"/jobs/{job_id}/{verb}")
    assert (answer.status_code, answer.json()["type"]) == (
        409,
        "urn:roadless:problem:phase_refuses",
    )


# ---- when things go wrong meanwhile --------------------------------------------------------------


def test_a_pause_that_takes_too_long_ends_the_attempt_and_is_a_pause(stage, attempt):
    stage.pause(attempt.job_id)
    keep_alive(stage, DEADLINES.stop_seconds - 5)
    (row,) = stage.attempts()
    assert (stage.job(attempt.job_id).phase, row.ended_at) == ("PAUSING", None)
    keep_alive(stage, 10)
    (row,) = stage.attempts()
    assert row.reason == "paused_by_user"
    stage.sync(row.runner_id, released=[row.id])
    assert stage.job(attempt.job_id).phase == "PAUSED"


def test_an_attempt_lost_while_pausing_is_not_replaced_before_the_resume(stage, attempt):
    (row,) = stage.attempts()
    stage.pause(attempt.job_id)
    stage.live(LEASE_SECONDS + 2)
    job = stage.job(attempt.job_id)
    assert (job.phase, job.losses_in_a_row) == ("PAUSING", 1)
    reply = stage.sync(row.runner_id, released=[row.id])
    assert reply.start == []
    assert stage.job(attempt.job_id).phase == "PAUSED"
    stage.resume(attempt.job_id)
    assert stage.job(attempt.job_id).losses_in_a_row == 0
    assert stage.claim(row.runner_id).fence == 2


def test_a_job_paused_while_it_recovers_waits_for_its_seats_only(stage, attempt):
    (row,) = stage.attempts()
    lost = {"kind": "failed", "reason": "worker_error", "message": "", "seq": 2}
    stage.report(attempt.token, lost)
    stage.pause(attempt.job_id)
    assert stage.job(attempt.job_id).phase == "PAUSING"
    stage.sync(row.runner_id, released=[row.id])
    assert stage.job(attempt.job_id).phase == "PAUSED"


def test_a_job_that_recovers_and_holds_nothing_pauses_at_once(stage, attempt):
    (row,) = stage.attempts()
    lost = {"kind": "failed", "reason": "worker_error", "message": "", "seq": 2}
    stage.report(attempt.token, lost)
    stage.sync(row.runner_id, released=[row.id], free_cpus=0)
    stage.pause(attempt.job_id)
    assert stage.job(attempt.job_id).phase == "PAUSED"


def test_a_budget_used_up_before_the_pause_was_heard_ends_the_job(stage, attempt):
    (row,) = stage.attempts()
    stage.pause(attempt.job_id)
    finished = {"kind": "finished", "reason": "budget_reached", "step": 1, "seq": 2}
    stage.report(attempt.token, finished)
    stage.sync(row.runner_id, released=[row.id])
    assert stage.job(attempt.job_id).phase == "SUCCEEDED"


def test_a_pausing_job_takes_no_resume_until_it_is_paused(stage, attempt):
    """Its ranks may be leaving already; half a pause is nothing that anybody asked for."""
    stage.pause(attempt.job_id)
    with pytest.raises(Refused, match="PAUSING job does not accept resume"):
        stage.resume(attempt.job_id)


def test_seats_of_a_paused_job_that_do_not_come_free_are_told_of(stage, attempt):
    stage.pause(attempt.job_id, "latest")
    keep_alive(stage, 120)
    assert stage.job(attempt.job_id).phase == "PAUSING"
    assert stage.codes(attempt.job_id).count("release.overdue") == 1


def test_a_paused_job_waits_for_ever_unless_the_operator_set_a_limit(stage, digits_spec):
    stage.thaw()
    job_id = stage.submit(digits_spec)
    stage.pause(job_id)
    assert stage.job(job_id).deadline_at is None
    stage.live(60)
    assert (stage.job(job_id).phase, stage.job(job_id).reason) == ("PAUSED", "paused_by_user")


def test_a_pause_beyond_the_limit_is_a_stop_that_can_be_resumed(stage, digits_spec):
    stage.thaw()
    stage.deadlines = replace(DEADLINES, pause_seconds=50)
    job_id = stage.submit(digits_spec)
    stage.pause(job_id)
    stage.live(49)
    assert stage.job(job_id).phase == "PAUSED"
    stage.live(3)
    job = stage.job(job_id)
    assert (job.phase, job.reason, job.desired) == ("STOPPED", "pause_expired", "stop")
    assert "paused for more than 50 s" in job.message
    stage.resume(job_id)
    assert (stage.job(job_id).phase, stage.job(job_id).ended_at) == ("QUEUED", None)


def test_ranks_of_a_job_paused_without_a_save_write_nothing_more(stage, attempt):
    stage.pause(attempt.job_id, "latest")
    with pytest.raises(Fenced):
        stage.report(attempt.token, {**step_event(2), "seq": 2})
