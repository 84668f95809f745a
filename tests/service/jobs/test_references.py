"""Jobs that start from a checkpoint: looked up once, kept from then on, and open to their ranks."""

import hashlib

import pytest
from played import Rank

from roadless.service.contract.ids import new_id
from roadless.service.contract.job.models import CheckpointModel
from roadless.service.contract.job.spec import JobSpec

CONTENT = b"the averaged weights"


@pytest.fixture
def saved(service, digits_spec):
    """A stopped job's id and the id of its eval checkpoint."""
    job_id, rank = service.running(digits_spec)
    checkpoint_id = rank.save(1, content=CONTENT)
    return end(service, job_id, rank), checkpoint_id


def end(service, job_id: str, rank: Rank) -> str:
    """Cancel the job and release what it held."""
    assert service.post(f"/jobs/{job_id}/cancel").status_code == 202
    service.sync(released=[rank.assignment["attempt_id"]])
    assert service.phase(job_id) == "CANCELLED"
    return job_id


def starting(digits_spec, checkpoint_id, **model):
    model = {"kind": "checkpoint", "checkpoint_id": checkpoint_id, **model}
    return {**digits_spec, "name": "second", "model": model}


def fault_of(answer) -> tuple[str, str]:
    assert answer.status_code == 422, answer.text
    (fault,) = answer.json()["errors"]
    return fault["pointer"], fault["message"]


def test_the_service_fills_in_the_architecture(service, digits_spec, saved):
    job = service.job(service.submit(starting(digits_spec, saved[1])))
    model = JobSpec.model_validate(job["spec"]).model
    assert isinstance(model, CheckpointModel)
    assert model.architecture == JobSpec.model_validate(digits_spec).model


def test_a_specification_that_is_filled_in_may_be_posted_again(service, digits_spec, saved):
    job = service.job(service.submit(starting(digits_spec, saved[1])))
    again = service.job(service.submit(job["spec"]))
    assert again["spec"] == job["spec"]
    other = {"kind": "preset", "name": "mlp"}
    answer = service.post("/jobs", json=starting(digits_spec, saved[1], architecture=other))
    assert fault_of(answer)[0] == "/model/architecture"


def test_its_ranks_get_the_manifest_and_the_files(service, digits_spec, saved):
    service.submit(starting(digits_spec, saved[1]))
    rank = service.claim()
    initial = rank.brief()["initial"]
    assert initial["checkpoint_id"] == saved[1]
    url = f"{rank.url}/checkpoints/{saved[1]}/files/{initial['files'][0]['name']}"
    answer = service.http.get(url, headers=rank.headers)
    assert hashlib.sha256(answer.content).hexdigest() == initial["files"][0]["sha256"]


def test_ranks_of_other_jobs_do_not_get_the_files(service, digits_spec, saved):
    service.submit(digits_spec)
    rank = service.claim()
    assert rank.brief()["initial"] is None
    url = f"{rank.url}/checkpoints/{saved[1]}/files/model.safetensors"
    assert service.http.get(url, headers=rank.headers).status_code == 404


def test_a_job_that_starts_from_such_a_job_has_the_first_ones_architecture(
    service, digits_spec, saved
):
    second_id = service.submit(starting(digits_spec, saved[1]))
    rank = service.claim()
    third = starting(digits_spec, rank.save(1))
    end(service, second_id, rank)
    model = service.job(service.submit(third))["spec"]["model"]
    assert model["architecture"] == JobSpec.model_validate(digits_spec).model.model_dump()


@pytest.mark.parametrize("kind", ["of a training state", "of nothing"])
def test_only_an_eval_checkpoint_of_the_project_will_do(service, digits_spec, kind):
    _, rank = service.running(digits_spec)
    checkpoint_id = rank.save(1, kind="resume") if "state" in kind else new_id("ckpt")
    pointer, message = fault_of(service.post("/jobs", json=starting(digits_spec, checkpoint_id)))
    assert pointer == "/model/checkpoint_id"
    assert message.startswith("expected ")
    assert "saw" in message


def test_a_task_that_the_checkpoints_model_cannot_do_is_refused(service, digits_spec, saved):
    spec = starting(digits_spec, saved[1]) | {
        "task": "causal_lm",
        "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
    }
    pointer, message = fault_of(service.post("/jobs", json=spec))
    assert pointer == "/model/checkpoint_id"
    assert "'classification' or 'regression'" in message


def test_retention_keeps_what_a_job_starts_from(service, digits_spec):
    """Two evaluations later, with one kept, it would have gone."""
    spec = {**digits_spec, "checkpoints": {"keep_last": 1, "keep_best": 0}}
    job_id, rank = service.running(spec, steps=4)
    first = rank.save(1)
    service.submit(starting(digits_spec, first))
    rank.save(2)
    rank.save(3)
    listed = service.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    assert [one["step"] for one in listed] == [3, 1]


def test_a_job_is_not_deleted_while_another_starts_from_it(service, digits_spec, saved):
    second_id = service.submit(starting(digits_spec, saved[1]))
    url = f"/v1/jobs/{saved[0]}"
    answer = service.http.delete(url, headers=service.user)
    assert answer.status_code == 409
    assert second_id in answer.json()["detail"]
    service.post(f"/jobs/{second_id}/cancel")
    second = f"/v1/jobs/{second_id}"
    assert service.http.delete(second, headers=service.user).status_code == 204
    assert service.http.delete(url, headers=service.user).status_code == 204


def test_a_retried_request_finds_its_job_though_the_specification_was_filled_in(
    service, digits_spec, saved
):
    headers = {"Idempotency-Key": "once"}
    spec = starting(digits_spec, saved[1])
    first, again = (service.post("/jobs", json=spec, headers=headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_column_with_two_roles_is_refused_with_its_place(service, digits_spec):
    rows = {"kind": "files", "path": "/rows.csv", "format": "csv", "target": "y", "columns": ["a"]}
    sets = [{"name": "later", "data": rows | {"columns": ["a", "y"]}}]
    of_set = digits_spec | {
        "data": rows,
        "evaluation": {"every_steps": 10, "sets": sets},
    }
    answer = service.post("/jobs", json=of_set)
    assert answer.status_code == 422
    assert fault_of(answer)[0] == "/evaluation/sets/0/data"
    assert "saw 'y' as both" in fault_of(answer)[1]
