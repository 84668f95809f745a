"""A field that a body may not have is answered with those that it may."""

import pytest

from roadless.service.contract.job.spec import JobSpec
from roadless.service.http.known_fields import known_fields


@pytest.fixture
def database_url(tmp_path):
    """What a body may hold does not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.mark.parametrize(
    ("change", "pointer", "hint"),
    [
        ({"optimiser": {}}, "/optimiser", "did you mean 'optimizer'?"),
        (
            {"optimizer": {"name": "adamw_schedulefree", "lrr": 1}},
            "/optimizer/lrr",
            "did you mean 'lr'?",
        ),
        (
            {"optimizer": {"name": "sgd_schedulefree", "momentun": 1}},
            "/optimizer/momentun",
            "did you mean 'momentum'?",
        ),
        (
            {"training": {"batch_size": 64, "batchsize": 1}},
            "/training/batchsize",
            "did you mean 'batch_size'?",
        ),
        (
            {"model": {"kind": "preset", "name": "gpt", "head": 2}},
            "/model/head",
            "did you mean 'heads'",
        ),
        ({"budget": {"max_steps": 5, "epochs": 1}}, "/budget/epochs", "known here: max_steps, "),
        (
            {"budget": {"patience": {"evaluations": 3, "metrics": "eval.loss"}}},
            "/budget/patience/metrics",
            "did you mean 'metric'?",
        ),
    ],
)
def test_what_was_meant_or_what_is_known_is_told(service, digits_spec, change, pointer, hint):
    answer = service.post("/jobs", json={**digits_spec, **change})
    found = {fault["pointer"]: fault["message"] for fault in answer.json()["errors"]}
    assert hint in found[pointer]
    assert found[pointer].startswith("Extra inputs are not permitted; saw ")


def test_other_bodies_are_answered_so_too(service, digits_spec):
    job_id = service.submit(digits_spec)
    for path, body, hint in (
        (f"/jobs/{job_id}/extend", {"step": 3}, "did you mean 'steps'"),
        (f"/jobs/{job_id}/pause", {"save": True}, "known here: checkpoint"),
        ("/datasets", {"name": "a", "format": "csv", "formats": 1}, "did you mean 'format'?"),
        ("/plan", {"horizons": 1}, "did you mean 'horizon'?"),
    ):
        answer = service.post(path, json=body)
        assert answer.status_code == 422
        assert any(hint in fault["message"] for fault in answer.json()["errors"]), answer.text


def test_fields_of_one_member_of_a_union_are_not_those_of_another():
    plain = known_fields(JobSpec, ("optimizer", "sgd_schedulefree"))
    assert "momentum" in plain
    assert "momentum" not in known_fields(JobSpec, ("optimizer", "adamw"))
    assert known_fields(JobSpec, ("model", "preset", "linear")) == ["kind", "name"]
    assert known_fields(JobSpec, ("name",)) == []
