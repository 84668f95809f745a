"""A data set is made once, however often and however quickly it is asked for."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NEW = {"name": "corpus", "format": "csv"}


def create(service: Any, key: str | None, body: Any = NEW) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return service.post("/datasets", json=body, headers=headers)


def at_once(service: Any, keys: list[str | None]) -> list[Any]:
    together = threading.Barrier(len(keys))

    def ask(key: str | None) -> Any:
        together.wait()
        return create(service, key)

    with ThreadPoolExecutor(len(keys)) as pool:
        return list(pool.map(ask, keys))


def test_a_key_gets_its_first_answer_again(service):
    """Also when the data set is sealed or gone by then: the retry is of the same request."""
    first = create(service, "k")
    assert first.status_code == 201
    dataset_id = first.json()["id"]
    assert service.http.delete(f"/v1/datasets/{dataset_id}", headers=service.user).is_success
    again = create(service, "k")
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["location"] == first.headers["location"] == f"/v1/datasets/{dataset_id}"
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert service.get("/datasets").json()["data"] == []


def test_the_answer_that_it_was_there_is_kept_too(service):
    create(service, None)
    assert [create(service, "k").status_code for _ in range(2)] == [200, 200]


def test_a_key_with_another_body_or_of_another_route_is_refused(service, digits_spec):
    create(service, "k")
    for answer in (
        create(service, "k", {**NEW, "name": "other"}),
        service.post("/jobs", json=digits_spec, headers={"Idempotency-Key": "k"}),
    ):
        assert answer.status_code == 422
        assert answer.json()["type"].endswith("idempotency_key_reused")


def test_a_conflict_takes_no_key(service):
    create(service, None)
    other = {**NEW, "format": "jsonl"}
    assert create(service, "k", other).status_code == 409
    assert create(service, "k", {**NEW, "name": "free"}).status_code == 201


def test_requests_of_one_key_at_once_make_one(service):
    answers = at_once(service, ["k"] * 10)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 9


def test_requests_of_one_name_at_once_make_one_and_none_fails(service):
    answers = at_once(service, [None] * 5 + [f"key {i}" for i in range(5)])
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
