"""Retry, change and delete: what users do with a job beside letting it train."""

import pytest
from played import eval_event, step_event
from sqlalchemy import func, select

from roadless.service.clock import utc_now
from roadless.service.db.session import Database
from roadless.service.db.tables import Table
from roadless.service.storage.blobs import REST
from roadless.service.storage.local_blobs import LocalBlobs

FAILED = {"kind": "failed", "reason": "non_finite_loss", "message": "saw nan"}


def failed(service, digits_spec):
    """A job that failed after its state of step 10."""
    job_id, rank = service.running(digits_spec, steps=20)
    rank.save(10, kind="resume")
    rank.report(FAILED)
    service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
    assert service.phase(job_id) == "FAILED"
    return job_id


# ---- retry ---------------------------------------------------------------------------------------


def test_a_failed_job_is_tried_again_from_its_newest_state(service, digits_spec):
    job_id = failed(service, digits_spec)
    job = service.post(f"/jobs/{job_id}/retry").json()
    assert (job["phase"], job["reason"], job["ended_at"]) == (
        "QUEUED",
        "waiting_for_capacity",
        None,
    )
    rank = service.claim()
    assert (rank.assignment["fence"], rank.brief()["resume"]["step"]) == (2, 10)


def test_a_retry_forgives_the_losses_before_it(service, digits_spec):
    job_id = service.submit({**digits_spec, "retry": {"max_attempts": 1}})
    for _ in range(3):
        rank = service.claim()
        rank.ended()
        service.sync(released=[rank.assignment["attempt_id"]], node={"free_cpus": 0})
        assert service.job(job_id)["reason"] == "retries_exhausted"
        service.post(f"/jobs/{job_id}/retry")
    assert service.phase(job_id) == "QUEUED"


def test_a_job_that_has_not_failed_is_not_retried(service, digits_spec):
    job_id = service.submit(digits_spec)
    assert service.post(f"/jobs/{job_id}/retry").status_code == 409


# ---- keys ----------------------------------------------------------------------------------------


def test_every_verb_has_its_effect_once_a_key(service, digits_spec):
    """A retried request finds the first one's answer, though the job has moved on meanwhile."""
    job_id = service.submit(digits_spec)
    key = {"Idempotency-Key": "p"}
    first = service.post(f"/jobs/{job_id}/pause", headers=key)
    service.post(f"/jobs/{job_id}/resume")
    again = service.post(f"/jobs/{job_id}/pause", headers=key)
    assert (again.json(), again.headers["etag"]) == (first.json(), first.headers["etag"])
    assert again.headers["idempotent-replayed"] == "true"
    assert service.phase(job_id) == "QUEUED"


def test_an_evaluation_retried_with_its_key_is_asked_for_once(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    for _ in range(3):
        service.post(f"/jobs/{job_id}/evaluate", headers={"Idempotency-Key": "e"})
    assert rank.report(step_event(2)).json()["evaluations_requested"] == 1


@pytest.mark.parametrize("path", ["{one}/cancel", "{other}/pause", "{one}/pause"])
def test_a_key_belongs_to_one_verb_of_one_job_with_one_body(service, digits_spec, path):
    one, other = service.submit(digits_spec), service.submit(digits_spec)
    key = {"Idempotency-Key": "k"}
    service.post(f"/jobs/{one}/pause", json={"checkpoint": "latest"}, headers=key)
    answer = service.post(f"/jobs/{path.format(one=one, other=other)}", headers=key)
    assert answer.json()["type"].endswith("idempotency_key_reused")


def test_a_refused_verb_does_not_use_its_key_up(service, digits_spec):
    job_id, key = service.submit(digits_spec), {"Idempotency-Key": "k"}
    assert service.post(f"/jobs/{job_id}/retry", headers=key).status_code == 409
    assert service.post(f"/jobs/{job_id}/pause", headers=key).status_code == 202


# ---- change --------------------------------------------------------------------------------------


def patch(service, job_id, body, etag=None):
    etag = etag or service.get(f"/jobs/{job_id}").headers["etag"]
    headers = {**service.user, "If-Match": etag}
    return service.http.patch(f"/v1/jobs/{job_id}", json=body, headers=headers)


def test_a_job_gets_another_name_priority_and_labels(service, digits_spec):
    job_id = service.submit({**digits_spec, "labels": {"team": "a"}})
    changes = {"name": "renamed", "priority": 7, "labels": {"team": "b"}}
    job = patch(service, job_id, changes).json()
    assert (job["name"], job["version"]) == ("renamed", 2)
    assert {name: job["spec"][name] for name in changes} == changes
    first = service.submit(digits_spec)
    assert service.claim(node={"free_cpus": 2}).assignment["job_id"] == job_id != first


def test_a_budget_is_the_whole_one_and_is_heard_by_ranks(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    patch(service, job_id, {"budget": {"max_steps": 7}})
    assert rank.report(step_event(2)).json()["budget"]["limits"]["max_steps"] == 7
    patch(service, job_id, {"budget": None})
    assert rank.report(step_event(3)).json()["budget"] == {"limits": None}


def test_what_is_not_named_stays(service, digits_spec):
    job_id = service.submit(digits_spec)
    job = patch(service, job_id, {"name": "x"}).json()
    assert job["spec"]["budget"]["max_steps"] == 500
    assert patch(service, job_id, {}).json()["version"] == job["version"]


def test_a_change_names_the_version_that_it_means(service, digits_spec):
    job_id = service.submit(digits_spec)
    bare = service.http.patch(f"/v1/jobs/{job_id}", json={"name": "x"}, headers=service.user)
    assert (bare.status_code, bare.json()["title"]) == (428, "If-Match header required")
    stale = patch(service, job_id, {"name": "x"}, etag='"99"')
    assert (stale.status_code, stale.json()["type"]) == (
        412,
        "urn:roadless:problem:precondition_failed",
    )
    assert service.job(job_id)["name"] == "digits"
    assert patch(service, job_id, {"name": "any"}, etag="*").json()["name"] == "any"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"model": {}}, "/model"),
        ({"name": ""}, "/name"),
        ({"name": None}, "/name"),
        ({"budget": {"max_tokens": 5}}, "/budget"),
        ({"priority": 1001}, "/priority"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_where_it_stands(
    service, digits_spec, body, pointer
):
    answer = patch(service, service.submit(digits_spec), body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_rates_that_depend_on_the_end_are_changed_by_an_extension_only(service, digits_spec):
    spec = {**digits_spec, "optimizer": {"name": "adamw"}, "schedule": {"name": "wsd"}}
    job_id = service.submit(spec)
    answer = patch(service, job_id, {"budget": {"max_steps": 600}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/budget/max_steps")
    assert patch(service, job_id, {"budget": {"max_steps": 500, "max_seconds": 9}}).is_success


def test_an_ended_job_takes_a_name_but_no_budget(service, digits_spec):
    job_id = service.submit(digits_spec)
    service.post(f"/jobs/{job_id}/cancel")
    assert patch(service, job_id, {"name": "old"}).is_success
    assert patch(service, job_id, {"budget": None}).status_code == 409


# ---- delete --------------------------------------------------------------------------------------


def delete(service, job_id):
    return service.http.delete(f"/v1/jobs/{job_id}", headers=service.user)


def num_rows(db, job_id):
    """How many rows of each table belong to the job."""
    tables = [table for table in Table.metadata.sorted_tables if "job_id" in table.columns]
    with db.read() as session:
        return {
            table.name: session.scalar(
                select(func.count()).select_from(table).where(table.c.job_id == job_id)
            )
            for table in tables
        }


def test_a_deleted_job_leaves_no_row_and_no_file(service, settings, digits_spec):
    db = Database(settings.resolved_database_url)
    job_id, rank = service.running(digits_spec, steps=3)
    rank.report(eval_event(3))
    rank.save(3)
    service.post(f"/jobs/{job_id}/cancel")
    service.sync(released=[rank.assignment["attempt_id"]])
    kept, keeper = service.running(digits_spec)
    keeper.save(1)
    assert sum(map(bool, num_rows(db, job_id).values())) >= 5
    assert delete(service, job_id).status_code == 204
    assert not any(num_rows(db, job_id).values())
    assert service.get(f"/jobs/{job_id}").status_code == 404
    assert rank.report(step_event(4)).status_code == 401

    blobs = LocalBlobs(settings.home_dir / "blobs")
    assert {name.split("/")[1] for name in blobs.folders(before=utc_now() + REST)} == {kept}
    (model,) = service.get(f"/jobs/{kept}/checkpoints").json()["data"]
    assert service.get(f"/checkpoints/{model['id']}/files/model.safetensors").content == b"x"
    db.close()


def test_a_job_that_may_hold_something_is_not_deleted(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    assert delete(service, job_id).status_code == 409
    service.post(f"/jobs/{job_id}/pause", json={"checkpoint": "latest"})
    service.sync(released=[rank.assignment["attempt_id"]])
    answer = delete(service, job_id)
    assert answer.json()["detail"] == "a PAUSED job cannot be deleted; stop or cancel it first"


def test_a_deleted_job_is_not_found_again(service, digits_spec):
    job_id = service.submit(digits_spec)
    service.post(f"/jobs/{job_id}/cancel")
    assert [delete(service, job_id).status_code for _ in range(2)] == [204, 404]
