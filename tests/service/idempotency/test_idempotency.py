"""P7: a request retried with its key makes one job, however many come at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient
from played import Service

from roadless.service.db import postgresql
from roadless.service.db.session import Database
from roadless.service.db.tables import IdempotencyRow
from roadless.service.main import create_app

NUM_POSTS = 50


def post_at_once(service, bodies, key="k"):
    """The answers to posts of all bodies with one key, sent together."""
    together = threading.Barrier(len(bodies))

    def post(body):
        together.wait()
        return service.post("/jobs", json=body, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(post, bodies))


def test_fifty_posts_of_one_key_at_once_make_one_job(service, digits_spec):
    answers = post_at_once(service, [digits_spec] * NUM_POSTS)
    assert {answer.status_code for answer in answers} == {201}
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len(service.get("/jobs").json()["data"]) == 1


def test_extensions_of_one_key_at_once_are_added_once(service, digits_spec):
    """And those of different keys each, though they all read and write one budget."""
    job_id = service.submit(digits_spec)

    def extend(key):
        headers = {"Idempotency-Key": key}
        return service.post(f"/jobs/{job_id}/extend", json={"steps": 10}, headers=headers)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(extend, ["one"] * 10 + [f"key {i}" for i in range(10)]))
    assert {answer.status_code for answer in answers} == {202}
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 9
    assert service.job(job_id)["spec"]["budget"]["max_steps"] == 500 + 11 * 10


def test_of_different_bodies_with_one_key_one_is_taken(service, digits_spec):
    answers = post_at_once(service, [{**digits_spec, "name": f"n{i}"} for i in range(10)])
    assert sorted(answer.status_code for answer in answers) == [201] + [422] * 9
    assert len(service.get("/jobs").json()["data"]) == 1


def test_different_keys_at_once_make_a_job_each(service, digits_spec):
    with ThreadPoolExecutor(10) as pool:
        headers = [{"Idempotency-Key": f"k{i}"} for i in range(10)]
        list(pool.map(lambda one: service.post("/jobs", json=digits_spec, headers=one), headers))
    assert len(service.get("/jobs").json()["data"]) == 10


def test_a_replay_is_the_first_answer_though_the_job_went_on(service, digits_spec):
    """The answer to the first request was lost after the commit; the job did not wait for it."""
    key = {"Idempotency-Key": "k"}
    first = service.post("/jobs", json=digits_spec, headers=key)
    service.post(f"/jobs/{first.json()['id']}/cancel")
    again = service.post("/jobs", json=digits_spec, headers=key)
    assert (again.json(), again.headers["etag"]) == (first.json(), first.headers["etag"])
    assert again.headers["location"] == first.headers["location"]


def test_without_a_key_each_post_makes_a_job(service, digits_spec):
    assert service.submit(digits_spec) != service.submit(digits_spec)


def test_defaults_written_out_are_the_same_request(service, digits_spec):
    key = {"Idempotency-Key": "k"}
    service.post("/jobs", json=digits_spec, headers=key)
    answer = service.post("/jobs", json={**digits_spec, "priority": 0}, headers=key)
    assert answer.headers["idempotent-replayed"] == "true"


def test_a_refused_request_does_not_use_its_key_up(service, digits_spec):
    key = {"Idempotency-Key": "k"}
    assert service.post("/jobs", json={**digits_spec, "task": "x"}, headers=key).status_code == 422
    assert service.post("/jobs", json=digits_spec, headers=key).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_has_a_length(service, digits_spec, key):
    headers = {"Idempotency-Key": key}
    assert service.post("/jobs", json=digits_spec, headers=headers).status_code == 422


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_key_whose_first_request_hangs_is_in_use(settings, digits_spec, monkeypatch):
    """Only PostgreSQL lets a second writer reach the key while the first is under way."""
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 0.2)
    app, key = create_app(settings), {"Idempotency-Key": "k"}
    other = Database(settings.resolved_database_url)
    with TestClient(app) as http:
        service = Service(http, settings.home_dir)
        with other.write() as session:
            values = {"project": "default", "key": "k", "body_sha256": "0", "response": {}}
            session.add(IdempotencyRow(**values, created_at=datetime.now(UTC)))
            session.flush()
            answer = service.post("/jobs", json=digits_spec, headers=key)
            session.rollback()
        assert answer.status_code == 409
        assert answer.json()["type"].endswith("idempotency_key_in_use")
        assert service.post("/jobs", json=digits_spec, headers=key).status_code == 201
    other.close()
