"""Secrets: what goes in is handed to the ranks of jobs that name it, and told to nobody else."""

import json
import logging
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from played import Service
from secret_keeping import VALUE, files_with, forms_in
from sqlalchemy import insert, select

from roadless.service.auth.tokens import Audience, digest, mint
from roadless.service.contract import secrets as contract
from roadless.service.contract.ids import new_id
from roadless.service.db.session import Database
from roadless.service.db.tables import IdempotencyRow, SecretRow, TokenRow
from roadless.service.main import create_app


@pytest.fixture
def db(settings) -> Any:
    db = Database(settings.resolved_database_url)
    yield db
    db.close()


def put(service: Service, name: str, value: Any = VALUE, headers: Any = None) -> Any:
    url = f"/v1/secrets/{name}"
    return service.http.put(url, json={"value": value}, headers=headers or service.user)


def delete(service: Service, name: str) -> Any:
    return service.http.delete(f"/v1/secrets/{name}", headers=service.user)


def names(service: Service, headers: Any = None) -> list[str]:
    answer = service.http.get("/v1/secrets", headers=headers or service.user)
    return [secret["name"] for secret in answer.json()["data"]]


@pytest.fixture
def wants_token(digits_spec) -> dict[str, Any]:
    return {**digits_spec, "secrets": ["HF_TOKEN"]}


# ---- in, and never out --------------------------------------------------------------------------


def test_a_secret_is_new_then_replaced_then_gone(service):
    assert put(service, "HF_TOKEN").status_code == 201
    (first,) = service.get("/secrets").json()["data"]
    assert put(service, "HF_TOKEN", "another value").status_code == 204
    (second,) = service.get("/secrets").json()["data"]
    assert second["created_at"] == first["created_at"]
    assert second["updated_at"] > first["updated_at"]
    assert delete(service, "HF_TOKEN").status_code == 204
    assert names(service) == []
    assert delete(service, "HF_TOKEN").status_code == 404


def test_lists_are_by_name_in_pages_and_tell_no_value(service):
    for name in ("B_KEY", "C_KEY", "A_KEY"):
        put(service, name)
    answer = service.get("/secrets", params={"limit": 2})
    assert [one["name"] for one in answer.json()["data"]] == ["A_KEY", "B_KEY"]
    assert answer.json()["has_more"]
    rest = service.get("/secrets", params={"after": answer.json()["last_id"]})
    assert [one["name"] for one in rest.json()["data"]] == ["C_KEY"]
    assert not forms_in(answer.text + rest.text)
    keys = {"object", "name", "is_readable", "created_at", "updated_at"}
    assert set(answer.json()["data"][0]) == keys


def test_no_answer_to_a_user_and_no_file_and_no_log_has_a_value(
    service, settings, wants_token, caplog
):
    caplog.set_level(logging.DEBUG)
    put(service, "HF_TOKEN")
    headers = {**service.user, "Idempotency-Key": "once"}
    made = service.http.post("/v1/jobs", json=wants_token, headers=headers)
    job_id = made.json()["id"]
    paths = ("/secrets", "/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/events")
    answers = [made.text, *(service.get(path).text for path in paths)]
    assert not forms_in("".join(answers))
    assert '"HF_TOKEN"' in made.text
    assert files_with(settings.home_dir.parent, VALUE) == []
    assert not forms_in(caplog.text)


def test_the_database_holds_no_value_in_any_table(service, db, wants_token):
    put(service, "HF_TOKEN")
    headers = {**service.user, "Idempotency-Key": "once"}
    service.http.post("/v1/jobs", json=wants_token, headers=headers)
    with db.read() as session:
        row = session.scalars(select(SecretRow)).one()
        assert VALUE.encode() not in row.sealed
        answer = session.scalars(select(IdempotencyRow)).one().response
    assert not forms_in(json.dumps(answer))


WRONG_BODIES = {
    "too short": json.dumps({"value": "abc"}),
    "no text but blanks": json.dumps({"value": "  a  b  "}),
    "a null character": json.dumps({"value": f"{VALUE}\0"}),
    "too long": json.dumps({"value": VALUE * 2000}),
    "another name": json.dumps({"valu": VALUE}),
    "one field more": json.dumps({"value": VALUE, "note": VALUE}),
    "the value as a name": json.dumps({"value": VALUE, VALUE: 1}),
    "no text": json.dumps({"value": [VALUE]}),
    "a text alone": json.dumps(VALUE),
    "a list": json.dumps([VALUE]),
    "nothing": "",
    "no JSON": VALUE,
    "JSON that ends": json.dumps({"value": VALUE})[:-2],
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES.keys())
def test_a_body_that_is_refused_is_not_repeated(service, body, caplog):
    caplog.set_level(logging.DEBUG)
    answer = service.http.put("/v1/secrets/HF_TOKEN", content=body, headers=service.user)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "expected" in answer.json()["detail"]
    assert not forms_in(answer.text + caplog.text)
    assert "never" not in answer.text
    assert names(service) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_body_beyond_any_value_is_not_read_to_its_end(service):
    body = b" " * (256 * 2**10) + json.dumps({"value": VALUE}).encode()
    answer = service.http.put("/v1/secrets/HF_TOKEN", content=body, headers=service.user)
    assert answer.status_code == 413
    assert names(service) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_values_up_to_the_bound_are_taken_and_come_back_as_they_were(service, wants_token):
    longest = "ü" * (contract.MAX_VALUE_BYTES // 2)
    for value in ("1234", longest, '{"type": "service_account"}\n', "tab\tand ünicode \U0001f511"):
        assert put(service, "HF_TOKEN", value).status_code in (201, 204)
        service.submit({**wants_token, "parallelism": {"num_workers": 1}})
        rank = service.claim()
        assert rank.brief()["secrets"] == {"HF_TOKEN": value}
        rank.report({"kind": "failed", "reason": "data_invalid", "message": "over"})
        service.sync(released=[rank.assignment["attempt_id"]])
    assert put(service, "HF_TOKEN", longest + "x").status_code == 422


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_project_has_a_bounded_number(service, monkeypatch):
    monkeypatch.setattr("roadless.service.secrets.actions.MAX_SECRETS", 2)
    assert [put(service, f"A{i}_KEY").status_code for i in range(3)] == [201, 201, 409]
    assert names(service) == ["A0_KEY", "A1_KEY"]
    assert put(service, "A1_KEY", "another value").status_code == 204


def test_two_that_put_the_same_name_at_once_both_succeed(service):
    """Whoever comes second replaces; nobody hears of a conflict in the database."""
    start = threading.Barrier(8)
    codes: list[int] = []

    def race(index: int) -> None:
        start.wait()
        codes.append(put(service, "HF_TOKEN", f"value {index}").status_code)

    threads = [threading.Thread(target=race, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201] + [204] * 7


# ---- projects -----------------------------------------------------------------------------------


@pytest.fixture
def stranger(service: Service, db) -> dict[str, str]:
    """A valid user token of another project, as headers."""
    token = mint(Audience.USER)
    row = {"id": new_id("tok"), "name": "b", "audience": "user", "project": "other"}
    with db.write() as session:
        session.execute(
            insert(TokenRow).values(**row, sha256=digest(token), created_at=datetime.now(UTC))
        )
    return {"Authorization": f"Bearer {token}"}


def test_another_project_sees_replaces_and_deletes_nothing(service, stranger, wants_token):
    put(service, "HF_TOKEN")
    assert names(service, stranger) == []
    assert service.http.delete("/v1/secrets/HF_TOKEN", headers=stranger).status_code == 404
    theirs = {**wants_token, "project": "other"}
    refused = service.http.post("/v1/jobs", json=theirs, headers=stranger)
    assert refused.status_code == 422
    assert put(service, "HF_TOKEN", "their value", stranger).status_code == 201
    service.submit(wants_token)
    assert service.claim().brief()["secrets"] == {"HF_TOKEN": VALUE}


def test_a_sealed_value_that_is_moved_to_another_project_does_not_open(
    service, db, stranger, wants_token
):
    """Somebody who can write the database cannot have a value handed to another project's job."""
    put(service, "HF_TOKEN")
    put(service, "HF_TOKEN", "their value", stranger)
    with db.write() as session:
        rows = {row.project: row for row in session.scalars(select(SecretRow))}
        rows["other"].sealed = rows["default"].sealed
    theirs = {**wants_token, "project": "other"}
    assert service.http.post("/v1/jobs", json=theirs, headers=stranger).status_code == 201
    brief = service.claim().brief()
    assert brief["secrets"] == {}
    assert "sealed for another project or name" in brief["secret_faults"][0]


# ---- jobs ---------------------------------------------------------------------------------------


def test_ranks_get_what_their_job_names_and_nothing_else(service, wants_token):
    put(service, "HF_TOKEN")
    put(service, "OTHER_KEY", "for other jobs")
    service.submit(wants_token)
    brief = service.claim().brief()
    assert brief["secrets"] == {"HF_TOKEN": VALUE}
    assert brief["secret_faults"] == []
    assert brief["spec"]["secrets"] == ["HF_TOKEN"]


def test_a_job_without_secrets_gets_none(service, digits_spec):
    put(service, "HF_TOKEN")
    service.submit(digits_spec)
    assert service.claim().brief()["secrets"] == {}


def test_a_name_that_the_project_has_not_is_refused_with_its_place(service, digits_spec):
    put(service, "HF_TOKEN")
    spec = {**digits_spec, "secrets": ["HF_TOKEN", "MY_KEY"]}
    answer = service.post("/jobs", json=spec)
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == "/secrets/1"
    assert "'MY_KEY'" in fault["message"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("written", [{"HF_TOKEN": VALUE}, [VALUE], VALUE, [[VALUE]]])
def test_a_job_that_is_given_values_for_names_is_refused_without_them(
    service, digits_spec, written
):
    answer = service.post("/jobs", json={**digits_spec, "secrets": written})
    assert answer.status_code == 422
    assert not forms_in(answer.text)
    assert "never" not in answer.text


def test_a_secret_put_anew_reaches_the_next_attempt(service, wants_token):
    put(service, "HF_TOKEN")
    service.submit(wants_token)
    first = service.claim()
    put(service, "HF_TOKEN", "the newer value")
    first.ended()
    again = service.claim(released=[first.assignment["attempt_id"]])
    assert again.brief()["secrets"] == {"HF_TOKEN": "the newer value"}


def test_a_secret_deleted_while_a_job_waits_is_named_to_its_ranks(service, wants_token):
    put(service, "HF_TOKEN")
    job_id = service.submit(wants_token)
    delete(service, "HF_TOKEN")
    rank = service.claim()
    brief = rank.brief()
    assert brief["secrets"] == {}
    assert brief["secret_faults"] == ["HF_TOKEN was deleted; put it again"]
    failed = {"kind": "failed", "reason": "secret_unavailable", "message": "HF_TOKEN was deleted"}
    assert rank.report(failed).status_code == 200
    service.sync(released=[rank.assignment["attempt_id"]])
    job = service.job(job_id)
    assert (job["phase"], job["reason"]) == ("FAILED", "secret_unavailable")
    put(service, "HF_TOKEN")
    assert service.post(f"/jobs/{job_id}/retry").status_code == 202
    assert service.claim().brief()["secrets"] == {"HF_TOKEN": VALUE}


# ---- keys ---------------------------------------------------------------------------------------


def test_a_lost_key_leaves_everything_else_at_work(service, settings, wants_token, digits_spec):
    """The secrets are marked, jobs that name them are told why, and putting them again mends it."""
    put(service, "HF_TOKEN")
    service.submit(wants_token)
    (settings.home_dir / "secrets.key").unlink()
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        again = Service(http, settings.home_dir)
        (listed,) = again.get("/secrets").json()["data"]
        assert listed["is_readable"] is False
        brief = again.claim().brief()
        assert brief["secrets"] == {}
        assert "HF_TOKEN was sealed with key" in brief["secret_faults"][0]
        again.submit({**digits_spec, "parallelism": {"num_workers": 1}})
        assert put(again, "HF_TOKEN").status_code == 204
        assert again.get("/secrets").json()["data"][0]["is_readable"] is True
