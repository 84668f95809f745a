"""Every error is a problem that says where and what: RFC 9457, with RFC 6901 pointers."""

import json
import logging

import pytest
from played import eval_event, step_event

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def database_url(tmp_path):
    """Problems do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


def faults(answer):
    """Pointer -> message of a refused request."""
    assert answer.status_code == 422, answer.text
    return {fault["pointer"]: fault["message"] for fault in answer.json()["errors"]}


def changed(spec, path, value):
    """The specification with another value at the path, a tuple of keys."""
    copy = json.loads(json.dumps(spec))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


# ---- where -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "pointer", "message"),
    [
        (("training", "batch_size"), -1, "/training/batch_size", "saw -1"),
        (("training", "batch_size"), "many", "/training/batch_size", "saw 'many'"),
        (("optimizer", "lr"), -0.1, "/optimizer/lr", "saw -0.1"),
        (("optimizer", "betas"), [0.9, 1.5], "/optimizer/betas/1", "saw 1.5"),
        (("optimizer", "betas"), [0.9], "/optimizer/betas/1", "required"),
        (("optimizer", "name"), "adam", "/optimizer/name", "'adamw_schedulefree'"),
        (("optimizer",), {"lr": 0.1}, "/optimizer/name", "Unable to extract tag"),
        (("optimizer",), "adam", "/optimizer", "saw 'adam'"),
        (("optimizer", "momentun"), 1, "/optimizer/momentun", "not permitted"),
        (("model", "name"), "alexnet", "/model/name", "'convnet'"),
        (("model", "width"), 0, "/model/width", "saw 0"),
        (("model", "kind"), "file", "/model/kind", "'preset'"),
        (("model",), {"kind": "preset", "name": "mlp", "hidden": [8, 0]}, "/model/hidden/1", "0"),
        (("model",), {"kind": "preset", "name": "gpt", "heads": 5}, "/model", "multiple of 2"),
        (("task",), "causal_lm", "/task", "'classification' or 'regression' for model 'convnet'"),
        (("parallelism", "num_workers"), 3, "/parallelism", "divide training.batch_size = 64"),
        (("budget",), {}, "/budget", "at least one limit"),
        (("budget", "max_steps"), 0, "/budget/max_steps", "saw 0"),
        (("labels",), {"a/b~c": 1}, "/labels/a~1b~0c", "saw 1"),
        (("unknown",), 1, "/unknown", "not permitted"),
        (("name",), "", "/name", "at least 1 character"),
    ],
)
def test_a_wrong_part_is_pointed_at(service, digits_spec, path, value, pointer, message):
    found = faults(service.post("/jobs", json=changed(digits_spec, path, value)))
    assert list(found) == [pointer]
    assert message in found[pointer]


@pytest.mark.parametrize("part", ["model", "data", "task", "optimizer"])
def test_a_missing_part_is_pointed_at(service, digits_spec, part):
    del digits_spec[part]
    assert faults(service.post("/jobs", json=digits_spec)) == {f"/{part}": "Field required"}


def test_every_fault_is_told_at_once(service, digits_spec):
    spec = changed(digits_spec, ("optimizer", "lr"), -1) | {"priority": "high", "x": 1}
    assert set(faults(service.post("/jobs", json=spec))) == {"/optimizer/lr", "/priority", "/x"}


def test_a_fault_deep_in_a_report_is_pointed_at(service, digits_spec):
    _, rank = service.running(digits_spec)
    answer = rank.send([step_event(1), {**eval_event(2), "loss": "much"}])
    assert list(faults(answer)) == ["/events/1/loss"]
    answer = rank.send([{"kind": "song"}])
    assert list(faults(answer)) == ["/events/0/kind"]


@pytest.mark.parametrize(
    ("path", "query", "pointer"),
    [
        ("/jobs", {"limit": 0}, "query:limit"),
        ("/jobs", {"limit": 201}, "query:limit"),
        ("/jobs", {"phase": "DONE"}, "query:phase"),
        ("/jobs/job_x/eval-curve", {"since": "x"}, "query:since"),
        ("/jobs/job_x/metrics/a", {"buckets": 0}, "query:buckets"),
        ("/jobs/job_x/metrics/a", {"x_min": "nan"}, "query:x_min"),
    ],
)
def test_a_fault_outside_the_body_names_the_parameter(service, path, query, pointer):
    assert list(faults(service.get(path, params=query))) == [pointer]


def test_what_was_seen_is_shown_short(service, digits_spec):
    spec = changed(digits_spec, ("training", "batch_size"), "x" * 1000)
    message = faults(service.post("/jobs", json=spec))["/training/batch_size"]
    assert message.endswith("...")
    assert len(message) < 200


# ---- bodies that are not JSON --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "saw 'Expecting property name enclosed in double quotes' at character 1"),
        (b"name: digits", "saw 'Expecting value' at character 0"),
        (b'{"name": "a"} trailing', "saw 'Extra data' at character 14"),
    ],
)
def test_a_body_that_is_not_json_is_refused_with_the_place(service, body, message):
    found = faults(service.post("/jobs", content=body, headers=JSON))
    assert found == {"": f"expected JSON, {message}"}


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_refused(service, body):
    assert list(faults(service.post("/jobs", content=body, headers=JSON))) == [""]


def test_no_body_is_refused(service):
    assert faults(service.post("/jobs")) == {"": "Field required"}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_another_content_type_is_refused(service, digits_spec, kind):
    answer = service.post("/jobs", content=json.dumps(digits_spec), headers={"Content-Type": kind})
    assert list(faults(answer)) == [""]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"training": {"seed": ' + b"1" * 5000 + b"}}",
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"priority": NaN, "budget": {"max_seconds": Infinity}}',
    ],
)
def test_a_body_that_is_meant_to_hurt_is_refused_as_any_other(service, body):
    answer = service.post("/jobs", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert_problem(answer)


def test_a_body_beyond_the_bound_is_answered_with_413(service):
    body = b'{"name": "' + b"x" * (8 * 2**20) + b'"}'
    answer = service.post("/jobs", content=body, headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:roadless:problem:too_large"


# ---- every error -------------------------------------------------------------------------------


def assert_problem(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.content, parse_constant=reject)
    assert set(problem) >= {"type", "title", "status", "detail", "instance", "request_id"}
    assert problem["status"] == answer.status_code
    assert problem["type"].startswith("urn:roadless:problem:")
    assert problem["request_id"]
    return problem


def reject(word):
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/jobs", 405),
        ("GET", "/v1/jobs/", 404),
        ("GET", "/v1/jobs/job_x", 404),
        ("GET", "/v1/jobs/%00", 422),
        ("GET", "/v1/checkpoints/ckpt_x", 404),
        ("POST", "/v1/jobs/job_x/stop", 404),
        ("GET", "/v1/jobs?limit=x", 422),
        ("GET", "/static/nowhere.js", 404),
    ],
)
def test_every_error_is_a_problem_with_the_requests_id(service, method, path, status):
    answer = service.http.request(method, path, headers=service.user)
    assert answer.status_code == status
    problem = assert_problem(answer)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["instance"] == path.partition("?")[0].replace("%00", "\x00")


def test_a_wrong_method_hears_the_right_ones(service):
    answer = service.http.delete("/healthz", headers=service.user)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_ids_of_requests_differ(service):
    ids = {service.http.get("/healthz").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


def test_a_fault_of_ours_tells_a_stranger_nothing(service):
    @service.http.app.get("/fault")
    def fault() -> None:
        raise ZeroDivisionError("secret of the house")

    answer = service.http.get("/fault")
    assert answer.status_code == 500
    assert_problem(answer)
    assert "secret" not in answer.text


def test_the_log_names_the_request_of_a_fault_of_ours(service, caplog):
    @service.http.app.get("/fault")
    def fault() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        problem = service.http.get("/fault").json()
    assert problem["status"] == 500
    assert problem["request_id"] in caplog.text


def test_a_path_cannot_move_the_cursor_of_who_reads_the_log(service, caplog):
    @service.http.app.get("/fault/{name}")
    def fault(name: str) -> None:
        raise ZeroDivisionError(name and "")

    with caplog.at_level(logging.ERROR):
        service.http.get("/fault/a%1b[2J%0aERROR")
    assert "\x1b" not in caplog.text
    assert "\nERROR'" not in caplog.text
    assert "/fault/a\\x1b[2J" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "detail"),
    [
        ("GET", "/nowhere", "saw GET /nowhere; GET /openapi.json lists them"),
        ("DELETE", "/healthz", "expected GET, saw DELETE /healthz"),
        ("GET", "/v1/jobs/job_x", "saw 'job_x': no job is called that; GET /v1/jobs lists"),
        ("GET", "/v1/checkpoints/ckpt_x", "GET /v1/jobs/{job_id}/checkpoints lists"),
        ("GET", "/v1/jobs/job_x/eval-curve", "saw 'job_x'"),
        ("DELETE", "/v1/secrets/A_TOKEN", "saw 'A_TOKEN': no secret is called that"),
    ],
)
def test_what_is_not_found_says_what_was_expected_and_where_to_look(service, method, path, detail):
    answer = service.http.request(method, path, headers=service.user)
    assert detail in answer.json()["detail"]
    assert answer.json()["detail"].startswith("expected ")


def test_no_log_line_holds_a_token(service, digits_spec, caplog):
    with caplog.at_level(logging.DEBUG):
        _, rank = service.running(digits_spec)
        rank.send([{"kind": "song"}])
        rank.report({**step_event(2), "step": 2**70})
        wrong = {"Authorization": "Bearer rl_user_wrong"}
        service.http.get("/v1/jobs", headers=wrong)
    secrets = [service.user, service.runner, rank.headers, wrong]
    for secret in secrets:
        assert secret["Authorization"].split()[1] not in caplog.text


# ---- numbers that JSON has no word for -----------------------------------------------------------


def test_nan_is_never_in_an_answer(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    for step, word in enumerate(["NaN", "Infinity", "-Infinity"], start=2):
        said = {**step_event(step), "values": {"train.loss": word, "grad.norm": word}}
        rank.report(said, {**eval_event(step), "loss": word, "metrics": {"eval.accuracy": word}})
        rank.save(step, loss=word)
    for field in ("wall_seconds", "gpu_seconds"):
        assert list(faults(rank.send([{**step_event(9), field: "Infinity"}])))
    paths = ["", "/metrics", "/metrics/train.loss", "/metrics/grad.norm", "/eval-curve"]
    urls = [f"/jobs/{job_id}{path}" for path in [*paths, "/checkpoints", "/events"]]
    urls += [f"/jobs/{job_id}/metrics/train.loss?x=wall_seconds", "/jobs"]
    urls += [f"/checkpoints/{one['id']}" for one in service.get(urls[5]).json()["data"]]
    for url in urls:
        answer = service.get(url)
        assert answer.status_code == 200, (url, answer.text)
        json.loads(answer.content, parse_constant=reject)
