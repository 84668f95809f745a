"""Queries and bodies that frameworks let pass, and that mean something else than was meant."""

import json

import pytest
from played import step_event

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def database_url(tmp_path):
    """What a request may hold does not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


def faults(answer):
    """Pointer -> message of a refused request."""
    assert answer.status_code == 422, answer.text
    return {fault["pointer"]: fault["message"] for fault in answer.json()["errors"]}


def posted(service, path, body):
    """``json.dumps`` escapes a lone surrogate, as a client written in Python sends it."""
    return service.post(path, content=json.dumps(body), headers=JSON)


# ---- the query ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "name", "known"),
    [
        ("/jobs", "phases=RUNNING", "phases", "after, limit, phase"),
        ("/jobs", "Limit=2", "Limit", "after, limit, phase"),
        ("/jobs/job_x", "wait_for=RUNNING", "wait_for", "no parameters"),
        ("/jobs/job_x/events", "since=3", "since", "after, limit"),
        ("/jobs/job_x/eval-curve", "after=3", "after", "bound, since"),
        ("/jobs/job_x/metrics/a", "bucket=3", "bucket", "buckets, x, x_max, x_min"),
        ("/jobs/job_x/checkpoints", "best_k=3", "best_k", "after, best, kind, limit"),
        ("/jobs/job_x/theory", "norm=even", "norm", "distance, norms, steps"),
        ("/datasets", "name=a", "name", "after, limit"),
        ("/wheels", "page=2", "page", "after, limit"),
        ("/secrets", "page=2", "page", "after, limit"),
    ],
)
def test_a_parameter_that_a_route_does_not_know_is_named_beside_those_it_does(
    service, path, query, name, known
):
    message = f"expected {known}; saw {name!r}, which is not known here"
    assert faults(service.get(f"{path}?{query}")) == {f"query:{name}": message}


def test_so_it_is_where_something_would_change(service, digits_spec):
    answer = service.post("/jobs?validate_only=true", json=digits_spec)
    assert "query:validate_only" in faults(answer)
    assert service.get("/jobs").json()["data"] == []


def test_a_parameter_given_twice_is_refused(service):
    assert faults(service.get("/jobs?limit=1&limit=2")) == {
        "query:limit": "expected limit once, saw it again"
    }


@pytest.mark.parametrize("value", ["%ED%A0%80", "%ff", "%c3", "%F4%90%80%80"])
def test_a_query_that_is_no_utf8_is_refused(service, value):
    for path, name in (("/jobs", "after"), ("/secrets", "after"), ("/jobs", value)):
        answer = service.get(f"{path}?{name}={value}")
        (message,) = faults(answer).values()
        assert message.startswith("expected UTF-8, saw ")


def test_empty_pairs_and_escaped_names_are_as_good_as_plain_ones(service):
    assert service.get("/jobs?&&limit=2&").status_code == 200
    assert service.get("/jobs?%6Cimit=2").status_code == 200


def test_our_own_processes_may_be_of_another_version(service, digits_spec):
    _, rank = service.running(digits_spec)
    answer = rank.http.get(f"{rank.url}?newer=1", headers=rank.headers)
    assert answer.status_code == 200


# ---- the body ----------------------------------------------------------------------------------

LONE = "expected text that UTF-8 can express, saw the lone surrogate '\\ud83d'"
CUT = "a smile \ud83d"  # half of an emoji, as a text cut by UTF-16 units ends


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": CUT}, "/name"),
        ({"labels": {"a": CUT}}, "/labels/a"),
        ({"labels": {CUT: "a"}}, "/labels/a smile \\ud83d"),
        ({"model": {"kind": "entry_point", "factory": "a:b", "arguments": {"x": [1, CUT]}}},
         "/model/arguments/x/1"),
        ({"model": {"kind": "entry_point", "factory": "a:b", "arguments": {CUT: 1}}},
         "/model/arguments/a smile \\ud83d"),
        ({"model": {"kind": "transformers", "auto_class": "AutoModelForCausalLM",
                    "config": {"model_type": "gpt2", "x/y~": {"z": CUT}}}},
         "/model/config/x~1y~0/z"),
        ({CUT: 1}, "/a smile \\ud83d"),
    ],
)  # fmt: skip
def test_a_lone_surrogate_is_pointed_at(service, digits_spec, change, pointer):
    assert faults(posted(service, "/jobs", {**digits_spec, **change})) == {pointer: LONE}


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("path", ["/jobs/{}/pause", "/jobs/{}/extend", "/jobs/{}"])
def test_a_lone_surrogate_is_refused_by_every_route_with_a_body(service, digits_spec, method, path):
    job_id = service.submit(digits_spec)
    body, headers = json.dumps({"name": CUT}), {**service.user, **JSON, "If-Match": "*"}
    url = f"/v1{path.format(job_id)}"
    answer = service.http.request(method, url, content=body, headers=headers)
    assert answer.status_code == 405 or faults(answer) == {"/name": LONE}


def test_other_bodies_with_a_lone_surrogate(service):
    assert faults(posted(service, "/datasets", {"name": CUT, "format": "csv"})) == {"/name": LONE}
    assert "/schedules/0/name" in faults(
        posted(service, "/plan", {"horizon": 10, "schedules": [{"name": CUT}]})
    )
    answer = service.http.put(
        "/v1/secrets/A_TOKEN", content=json.dumps({"value": CUT}), headers={**service.user, **JSON}
    )
    assert answer.status_code == 422
    assert "ud83d" not in answer.text, "it is part of a secret"


def test_a_lone_surrogate_in_a_report_is_refused(service, digits_spec):
    _, rank = service.running(digits_spec)
    for event in (
        {"kind": "notice", "code": "n", "message": CUT},
        {"kind": "failed", "reason": "worker_error", "message": CUT},
        {"kind": "started", "world_size": 1, "provenance": {"host": CUT}},
    ):
        body = {"rank": 0, "events": [{**event, "seq": 2}]}
        headers = {**rank.headers, **JSON}
        answer = rank.http.post(f"{rank.url}/report", content=json.dumps(body), headers=headers)
        assert list(faults(answer).values()) == [LONE]
    assert rank.report(step_event(2)).status_code == 200, "the attempt goes on"


def test_so_is_one_that_is_written_as_three_bytes(service, digits_spec):
    """Python's ``json`` reads them, though UTF-8 does not have them."""
    _, rank = service.running(digits_spec)
    event = {"kind": "notice", "code": "n", "message": CUT, "seq": 2}
    body = json.dumps({"rank": 0, "events": [event]}, ensure_ascii=False)
    content = body.encode(errors="surrogatepass")
    headers = {**rank.headers, **JSON}
    answer = rank.http.post(f"{rank.url}/report", content=content, headers=headers)
    assert list(faults(answer).values()) == [LONE]


def test_a_pair_of_surrogates_is_a_character(service, digits_spec):
    job_id = service.submit({**digits_spec, "name": "\U0001f600", "labels": {"a": "\\ud83d"}})
    job = service.job(job_id)
    assert (job["name"], job["spec"]["labels"]) == ("\U0001f600", {"a": "\\ud83d"})


@pytest.mark.parametrize(
    ("word", "seen"), [("NaN", "nan"), ("-Infinity", "-inf"), ("1e999", "inf")]
)
def test_a_number_that_json_does_not_have_is_pointed_at(service, digits_spec, word, seen):
    text = json.dumps({**digits_spec, "training": {"batch_size": 64, "seed": 123}})
    answer = service.post("/jobs", content=text.replace("123", word), headers=JSON)
    assert faults(answer) == {"/training/seed": f"expected a finite number, saw {seen}"}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ('"name": "a", "name": "b"', "name"),
        ('"training": {"batch_size": 64, "seed": 1, "seed": 2}', "seed"),
        ('"labels": {"a": "1", "\\u0061": "2"}', "a"),
    ],
)
def test_a_key_that_comes_twice_is_refused(service, digits_spec, part, name):
    kept = {key: value for key, value in digits_spec.items() if f'"{key}":' not in part}
    body = json.dumps(kept)[:-1] + f", {part}}}"
    answer = service.post("/jobs", content=body, headers=JSON)
    assert faults(answer) == {"": f"expected each key once, saw {name!r} again"}


@pytest.mark.parametrize("action", ["stop", "resume", "retry", "cancel", "evaluate"])
def test_a_body_for_an_action_that_takes_none_is_refused(service, digits_spec, action):
    """A pause takes ``checkpoint``; a stop that ignored it would do something else than meant."""
    job_id = service.submit(digits_spec)
    answer = service.post(f"/jobs/{job_id}/{action}", json={"checkpoint": "latest"})
    (message,) = faults(answer).values()
    assert message.startswith("expected no body for this action, saw '{")
    assert service.phase(job_id) == "QUEUED"
    for empty in (b"", b"{}", b" null "):
        answer = service.post(f"/jobs/{job_id}/{action}", content=empty)
        assert answer.status_code in (202, 409)


# ---- what a body is said to be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, "'application/x-www-form-urlenc"),
        ({"Content-Type": "text/plain; charset=utf-8"}, "'text/plain; charset=utf-8'"),
        ({}, "none"),
    ],
)
@pytest.mark.parametrize("path", ["/jobs", "/plan", "/datasets", "/jobs/{}/extend"])
def test_a_body_that_is_not_said_to_be_json_is_told_how(service, digits_spec, path, headers, seen):
    """What ``curl -d`` sends, for one."""
    url = path.format(service.submit(digits_spec))
    message = faults(service.post(url, content=b'{"steps": 3}', headers=headers))[""]
    assert message.startswith(
        f"expected the header Content-Type: application/json with this body, saw {seen}"
    )
    assert "curl" in message


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "application/merge-patch+json"]
)
def test_every_kind_of_json_is_taken(service, digits_spec, kind):
    body = json.dumps(digits_spec)
    answer = service.post("/jobs", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xff\xfe\x00", "expected JSON"),
        (b'{"name": "\xff"}', "expected JSON in UTF-8"),
        (b'{"training": {"seed": ' + b"1" * 5000 + b"}}", "expected JSON in UTF-8"),
        (b"[" * 100_000, "expected JSON"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(service, body, said):
    answer = service.post("/jobs", content=body, headers=JSON)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
