"""Checkpoints that a fresh process has looked at: what the contract says and what is refused."""

import json

import pytest
from pydantic import ValidationError

from roadless.service.contract.checkpoint.manifest import EvaluationCheck, Manifest
from roadless.service.contract.ids import new_id
from roadless.service.contract.job.evaluation import EvaluationSpec
from roadless.service.contract.job.spec import JobSpec


def listed(service, job_id):
    answer = service.get(f"/jobs/{job_id}/checkpoints?kind=eval")
    return [row["id"] for row in answer.json()["data"]]


def said(rank, *, check):
    """An announcement whose files are stored."""
    checkpoint_id = new_id("ckpt")
    rank.upload(checkpoint_id, b"x")
    event = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=b"x")
    if check is not None:
        event["manifest"]["evaluation"]["check"] = {"num_examples": 8, "loss": 1.0, **check}
    return checkpoint_id, event


@pytest.mark.parametrize(
    "check",
    [
        {"seen_loss": 1.0000000000000002},
        {"seen_loss": "NaN"},
        {"seen_loss": "Infinity", "tolerance": 0.01},
        {"seen_loss": 1.002, "tolerance": 0.001},
        {"seen_loss": 1.5, "tolerance": 0.5},
    ],
)
def test_a_checkpoint_that_did_not_pass_its_check_is_never_listed(service, digits_spec, check):
    """Whoever says so: a rank that does not keep to the rule, or a tolerance beyond all sense."""
    job_id, rank = service.running(digits_spec)
    _, event = said(rank, check=check)
    assert rank.report(event).status_code == 422
    assert listed(service, job_id) == []


@pytest.mark.parametrize(
    "check",
    [None, {"seen_loss": 1.0}, {"seen_loss": 1.0005, "tolerance": 0.001}],
    ids=["of an earlier release", "bit for bit", "of a GPU"],
)
def test_one_that_passed_is_listed_with_its_check(service, digits_spec, check):
    job_id, rank = service.running(digits_spec)
    checkpoint_id, event = said(rank, check=check)
    assert rank.report(event).status_code == 200
    assert listed(service, job_id) == [checkpoint_id]
    told = service.get(f"/checkpoints/{checkpoint_id}").json()["evaluation"]["check"]
    assert told == (check and {"num_examples": 8, "loss": 1.0, "tolerance": 0.0, **check})


def test_losses_that_are_no_numbers_pass_when_they_are_the_same(service, digits_spec):
    """A model that has diverged on held-out data is what it is."""
    job_id, rank = service.running(digits_spec)
    checkpoint_id, event = said(rank, check={"loss": "NaN", "seen_loss": "NaN"})
    assert rank.report(event).status_code == 200
    assert listed(service, job_id) == [checkpoint_id]


def test_a_check_survives_the_wire():
    check = EvaluationCheck(num_examples=3, loss=0.1 + 0.2, seen_loss=0.1 + 0.2)
    again = EvaluationCheck.model_validate_json(check.model_dump_json())
    assert again == check
    assert again.holds


def test_a_manifest_of_an_earlier_release_has_no_check():
    receipt = {
        "loss": 1.0,
        "num_examples": 1,
        "batch_size": 1,
        "threads": 1,
        "torch_version": "2",
        "data_fingerprint": "f",
    }
    manifest = Manifest(
        checkpoint_id="ckpt_1",
        job_id="job_1",
        attempt_id="att_1",
        kind="eval",
        step=1,
        samples=1,
        evaluation=receipt,
        files=[{"name": "a", "size": 1, "sha256": "0" * 64}],
    )
    assert manifest.evaluation.check is None


def test_evaluations_are_made_in_training_unless_one_says_otherwise(digits_spec):
    assert JobSpec.model_validate(digits_spec).evaluation.placement == "inline"
    stored = json.loads(JobSpec.model_validate(digits_spec).model_dump_json())
    del stored["evaluation"]["placement"]
    assert JobSpec.model_validate(stored).evaluation.placement == "inline"


def test_y_is_not_at_hand_beside_training():
    with pytest.raises(ValidationError, match="expected at_y = false with placement 'async'"):
        EvaluationSpec(placement="async", at_y=True)
    assert EvaluationSpec(placement="async").placement == "async"
    with pytest.raises(ValidationError):
        EvaluationSpec(placement="elsewhere")
