"""Bodies of JSON: what they cost, whoever sends them, and what is said of those that are wrong."""

import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.http.bodies import MAX_FAULTS_MADE, BodyParser, body_faults, without_nul
from roadless.service.http.faults import MAX_FAULTS
from roadless.service.http.middleware import MAX_USERS_BODY_BYTES
from roadless.service.http.problems import MAX_MESSAGE_LENGTH, MAX_POINTER_LENGTH
from roadless.service.http.routing import GuardedRoute

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def database_url(tmp_path):
    """Bodies do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


def wrong_keys(num_keys):
    return b"{" + b",".join(b'"k%d":0' % i for i in range(num_keys)) + b"}"


def posted(service, content, path="/jobs"):
    return service.post(path, content=content, headers=JSON)


# ---- how much is said ----------------------------------------------------------------------------


def test_of_many_faults_the_first_are_listed_and_all_are_counted(service):
    answer = posted(service, wrong_keys(MAX_FAULTS_MADE - 10))
    assert answer.status_code == 422
    problem = answer.json()
    assert len(problem["errors"]) == MAX_FAULTS
    num_faults = MAX_FAULTS_MADE - 10 + 4  # the four parts that are missing
    assert f"{num_faults} faults in all, of which the first 100" in problem["detail"]
    assert len(answer.content) < 50_000


def test_of_more_faults_than_that_only_the_number_is_said(service):
    num_keys = 10 * MAX_FAULTS_MADE
    answer = posted(service, wrong_keys(num_keys))
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert f"saw {num_keys + 4} faults in it" in fault["message"]
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    "change",
    [
        {"x" * 10**6: 1},
        {"name": "x" * 10**6},
        {"optimizer": {"name": "x" * 10**6}},
        {"training": {"seed": {str(i): "x" * 100 for i in range(10**4)}}},
        {"labels": {"x" * 10**6: 1}},
        {"labels": dict.fromkeys(map(str, range(5000)), 1)},
        {"task": ["x" * 10**6]},
        {"name": "\ud83d", "x" * 10**6: "\ud83d"},
    ],
    ids=["key", "text", "tag", "object", "key of a label", "labels", "list", "surrogates"],
)
def test_whatever_is_long_in_a_body_is_short_in_the_answer(service, digits_spec, change):
    answer = posted(service, json.dumps({**digits_spec, **change}))
    assert answer.status_code == 422
    assert len(answer.content) < 50_000
    for fault in answer.json()["errors"]:
        assert len(fault["message"]) <= MAX_MESSAGE_LENGTH
        assert len(fault["pointer"]) <= MAX_POINTER_LENGTH


def test_so_is_a_query_of_many_parameters(service):
    answer = service.get("/jobs?" + "&".join(f"k{i}=1" for i in range(5000)))
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == MAX_FAULTS


def test_places_below_a_long_key_take_no_room():
    body = {"x" * 10**5: [float("nan"), *[0.5] * 10**4]}
    tracemalloc.start()
    (fault,) = body_faults(body, is_strict=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fault.pointer.endswith("x/0")
    assert peak < 50 * 2**20


# ---- how much is read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "num_bytes"),
    [("/jobs", MAX_USERS_BODY_BYTES), ("/plan", 4 * 2**20), ("/jobs/job_x/stop", 2 * 2**20)],
)
def test_a_route_takes_no_more_than_it_can_need(service, path, num_bytes):
    assert posted(service, b" " * (num_bytes + 1), path).status_code == 413
    assert posted(service, b" " * num_bytes, path).status_code in (404, 422)


def test_the_form_that_anybody_may_send_is_small(service):
    answer = service.http.post("/login", data={"token": "x" * 5000})
    assert answer.status_code == 413


def routes_of(routes):
    for route in routes:
        if hasattr(route, "original_router"):
            yield from routes_of(route.original_router.routes)
        else:
            yield route


def test_every_route_is_guarded(service):
    ours = [r for r in routes_of(service.http.app.routes) if r.name not in ("openapi", "static")]
    assert len(ours) > 50
    assert [route.path for route in ours if not isinstance(route, GuardedRoute)] == []


@pytest.mark.parametrize(
    "path",
    ["/v1/jobs", "/v1/plan", "/internal/v1/runners", "/internal/v1/attempts/a/report"],
)
def test_a_body_is_not_read_before_its_sender_is_known(service, path):
    sent = []

    async def receive():
        raise AssertionError("the service reads")

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer rl_user_x")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }
    service.http.portal.call(service.http.app, scope, receive, send)
    assert sent[0]["status"] == 401


# ---- who waits -----------------------------------------------------------------------------------


def test_while_a_body_is_parsed_others_are_answered(service, digits_spec, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    parse = BodyParser.parse

    def slow(self, content):
        begun.set()
        assert go_on.wait(30)
        return parse(self, content)

    monkeypatch.setattr(BodyParser, "parse", slow)
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(service.post, "/jobs", json=digits_spec) for _ in range(4)]
        assert begun.wait(10)
        try:
            assert pool.submit(service.http.get, "/healthz").result(10).status_code == 200
            assert pool.submit(service.get, "/jobs").result(10).status_code == 200
        finally:
            go_on.set()
        assert {answer.result(30).status_code for answer in waiting} == {201}


# ---- what passes ---------------------------------------------------------------------------------


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
)


def texts_in(value):
    if isinstance(value, str):
        yield value
    for inner in [*value, *value.values()] if isinstance(value, dict) else ():
        yield from texts_in(inner)
    for inner in value if isinstance(value, list) else ():
        yield from texts_in(inner)


@given(VALUES)
def test_nul_is_replaced_and_nothing_else_is(body):
    sent = json.loads(without_nul(json.dumps(body).encode()))
    expected = json.dumps(body).replace("\\\\", "\x01").replace("\\u0000", "\\ufffd")
    assert json.dumps(sent) == json.dumps(json.loads(expected.replace("\x01", "\\\\")))


@given(VALUES)
def test_what_passes_can_be_stored_and_what_does_not_is_pointed_at(body):
    found = body_faults(body, is_strict=True)
    try:
        said = json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        said = None
    if said is None or "\0" in "".join(texts_in(body)):
        assert found
        json.dumps([fault.pointer + fault.message for fault in found], ensure_ascii=False).encode()
    else:
        assert found == []
