"""A job that has reached its budget has succeeded only with a model, and says so without one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played import eval_event, step_event

from roadless.service.contract.reports.events import Finished
from roadless.service.contract.states import REACHED, Reason
from roadless.service.ingest.ending import Models, missing_model, reason_of

MISMATCH = {
    "kind": "notice",
    "code": "checkpoint.mismatch",
    "message": "the checkpoint of step 10 is not listed: expected the loss 0.5, saw 0.7",
}
UNCHECKED = {
    "kind": "notice",
    "code": "checkpoint.unchecked",
    "message": "the checkpoint of step 10 is not listed: the process was killed",
}
FAILED = {
    "kind": "notice",
    "code": "checkpoint.failed",
    "message": "a checkpoint was not written; training continues: No space left on device",
}


def finished(reason="budget_reached", step=20):
    return {"kind": "finished", "reason": reason, "step": step}


def ended(service, rank):
    """The job once its seats are released."""
    service.sync(released=[rank.assignment["attempt_id"]])
    return service.job(rank.assignment["job_id"])


@pytest.mark.parametrize("refusal", [MISMATCH, UNCHECKED], ids=["mismatch", "unchecked"])
@pytest.mark.parametrize("reason", sorted(REACHED))
def test_a_job_whose_every_checkpoint_was_refused_has_failed_and_keeps_its_curve(
    service, digits_spec, refusal, reason
):
    job_id, rank = service.running(digits_spec)
    told = [eval_event(10), refusal, eval_event(20), refusal, finished(reason)]
    assert rank.report(*told).status_code == 200
    job = ended(service, rank)
    assert (job["phase"], job["reason"]) == ("FAILED", "checkpoint_mismatch")
    assert job["attempt"]["reason"] == "checkpoint_mismatch"
    assert job["message"].startswith("ended after step 20; expected checkpoints that pass")
    assert "saw 2 that did not" in job["message"]
    assert refusal["message"] in job["message"]
    curve = service.get(f"/jobs/{job_id}/eval-curve").json()["data"]
    assert [(point["step"], point["checkpoint_id"]) for point in curve] == [(10, None), (20, None)]
    assert rank.assignment["fence"] == 1, "what is wrong with a model is not mended by a retry"


def test_refusals_count_over_all_attempts(service, digits_spec):
    job_id, first = service.running(digits_spec)
    first.report(eval_event(1), MISMATCH)
    first.ended()
    second = service.claim(released=[first.assignment["attempt_id"]])
    second.report(step_event(1), finished())
    assert ended(service, second)["reason"] == "checkpoint_mismatch"
    assert "phase.failed" in [
        event["code"] for event in service.get(f"/jobs/{job_id}/events").json()["data"]
    ]


def test_one_checkpoint_that_passed_is_a_model_and_the_message_says_which(service, digits_spec):
    _, rank = service.running(digits_spec)
    rank.save(10)
    rank.report(MISMATCH, finished())
    job = ended(service, rank)
    assert (job["phase"], job["reason"]) == ("SUCCEEDED", "budget_reached")
    assert "the newest model is that of step 10" in job["message"]
    assert MISMATCH["message"] in job["message"]


def test_a_last_checkpoint_that_passed_needs_no_word(service, digits_spec):
    _, rank = service.running(digits_spec)
    rank.report(MISMATCH)
    rank.save(20)
    rank.report(finished())
    job = ended(service, rank)
    assert (job["phase"], job["message"]) == ("SUCCEEDED", "ended after step 20")


def test_a_training_state_is_no_model(service, digits_spec):
    _, rank = service.running(digits_spec)
    rank.report(MISMATCH)
    rank.save(20, kind="resume")
    rank.report(finished())
    assert ended(service, rank)["phase"] == "FAILED"


def test_a_model_of_steps_that_were_repeated_is_none(service, digits_spec):
    """The next attempt began before it, so the curve no longer has it."""
    _, first = service.running(digits_spec)
    first.save(5)
    first.ended()
    second = service.claim(released=[first.assignment["attempt_id"]])
    second.report(step_event(1), MISMATCH, finished())
    assert ended(service, second)["reason"] == "checkpoint_mismatch"


def test_a_job_that_its_user_stops_is_stopped_and_says_it(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    service.post(f"/jobs/{job_id}/stop")
    rank.report(MISMATCH, finished("stopped_by_user"))
    job = ended(service, rank)
    assert (job["phase"], job["reason"]) == ("STOPPED", "stopped_by_user")
    assert "so there is no model" in job["message"]


def test_a_job_that_was_extended_meanwhile_goes_on(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report(MISMATCH)
    service.post(f"/jobs/{job_id}/extend", json={"steps": 100})
    rank.report({**finished(), "budget": {"limits": {"max_steps": 500}}})
    service.sync(released=[rank.assignment["attempt_id"]])
    job = service.job(job_id)
    assert job["phase"] in ("RECOVERING", "STARTING")
    assert job["attempt"]["reason"] != "checkpoint_mismatch"


def test_the_retry_of_such_a_job_succeeds_once_a_checkpoint_passes(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report(MISMATCH, finished())
    assert ended(service, rank)["phase"] == "FAILED"
    assert service.post(f"/jobs/{job_id}/retry").status_code == 202
    again = service.claim()
    again.report(step_event(1))
    again.save(20)
    again.report(finished())
    assert ended(service, again)["phase"] == "SUCCEEDED"


def test_a_job_whose_checkpoints_were_not_written_says_so(service, digits_spec):
    _, rank = service.running(digits_spec)
    rank.report(FAILED, finished())
    job = ended(service, rank)
    assert job["phase"] == "SUCCEEDED"
    assert job["message"] == f"ended after step 20; there is no model: {FAILED['message']}"


MODELS = st.builds(
    Models,
    newest_step=st.none() | st.integers(0, 30),
    num_refused=st.integers(0, 3),
    last_refusal=st.just("refused"),
    last_loss=st.none() | st.just("lost"),
)
REASONS = st.sampled_from(
    [*sorted(REACHED), Reason.STOPPED_BY_USER, Reason.PAUSED_BY_USER, Reason.RESIZED]
)


@given(MODELS, REASONS, st.integers(0, 30))
def test_only_a_refusal_without_any_model_changes_how_a_job_ends(models, reason, step):
    event = Finished(reason=reason, step=step)
    has_failed = models.newest_step is None and models.num_refused > 0 and reason in REACHED
    expected = Reason.CHECKPOINT_MISMATCH if has_failed else reason
    assert reason_of(event, models) == expected
    has_last = models.newest_step is not None and models.newest_step >= step
    has_word = bool(missing_model(event, models))
    assert not (has_last and has_word), "a job with the model of its last step needs no word"
    assert has_word or not has_failed
