"""The SDK against a service that loses answers, falls over, cuts downloads and refuses."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from roadless.service.client.client import (
    PAUSES,
    TIMEOUT_SECONDS,
    ApiError,
    Client,
    ClientError,
    Corrupt,
    Unreachable,
    WaitTimeout,
)
from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.requests import Extend, JobPatch
from roadless.service.contract.states import Phase

SPEC = {
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "sgd_schedulefree"},
}
JOB = {
    "id": "job_1",
    "project": "default",
    "name": "job",
    "phase": "RUNNING",
    "desired": "run",
    "version": 1,
    "spec": SPEC,
    "progress": {},
    "created_at": "2025-01-01T00:00:00Z",
}
BYTES = bytes(range(256)) * 1000
FILE = CheckpointFile(
    name="model.safetensors", size=len(BYTES), sha256=hashlib.sha256(BYTES).hexdigest()
)

Handler = Callable[[httpx.Request], httpx.Response]


class Cut(httpx.SyncByteStream):
    """A body that breaks off after ``size`` bytes."""

    def __init__(self, content: bytes, *, size: int) -> None:
        self._content, self._size = content, size

    def __iter__(self) -> Iterator[bytes]:
        yield self._content[: self._size]
        raise httpx.ReadError("connection reset")


class Service:
    """Answers requests by a list of handlers, in order; the last one answers all further ones."""

    def __init__(self, *handlers: Handler) -> None:
        self._handlers = list(handlers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        handler = self._handlers.pop(0) if len(self._handlers) > 1 else self._handlers[0]
        return handler(request)

    def client(self) -> Client:
        transport = httpx.MockTransport(self)
        return Client("http://service", "secret", transport=transport, sleep=self.pauses.append)


def answers(body: object, status: int = 200, **headers: str) -> Handler:
    return lambda request: httpx.Response(status, json=body, headers=headers)


def loses_the_answer(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset", request=request)


def serves_file(request: httpx.Request) -> httpx.Response:
    asked = request.headers.get("Range")
    if asked is None:
        return httpx.Response(200, content=BYTES)
    assert request.headers["If-Range"] == f'"{FILE.sha256}"'
    return httpx.Response(206, content=BYTES[int(asked.removeprefix("bytes=").rstrip("-")) :])


def test_every_request_carries_the_token():
    service = Service(answers(JOB))
    assert service.client().job("job_1").phase is Phase.RUNNING
    assert service.requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("failure", [loses_the_answer, answers({}, 503)])
def test_a_post_is_retried_with_its_own_key(failure):
    service = Service(failure, failure, answers(JOB, 201))
    assert service.client().submit(SPEC).id == "job_1"
    keys = [request.headers["Idempotency-Key"] for request in service.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert service.pauses == list(PAUSES[:2])


def test_two_posts_have_different_keys_and_a_given_key_is_kept():
    service = Service(answers(JOB, 201))
    client = service.client()
    client.submit(SPEC)
    client.submit(SPEC)
    client.submit(SPEC, idempotency_key="mine")
    first, second, third = (request.headers["Idempotency-Key"] for request in service.requests)
    assert first != second
    assert third == "mine"


def test_retries_end():
    service = Service(loses_the_answer)
    with pytest.raises(Unreachable, match="no answer from http://service"):
        service.client().job("job_1")
    assert service.pauses == list(PAUSES)


def test_a_service_that_takes_requests_and_stays_silent_is_not_asked_for_minutes(monkeypatch):
    """A timeout is long; each further try would be as long again."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def stays_silent(request: httpx.Request) -> httpx.Response:
        now[0] += TIMEOUT_SECONDS
        raise httpx.ReadTimeout("timed out", request=request)

    service = Service(stays_silent)
    with pytest.raises(Unreachable, match="timed out"):
        service.client().job("job_1")
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_not_sent_again(status):
    service = Service(answers({}, status))
    with pytest.raises(ApiError, match=str(status)):
        service.client().submit(SPEC)
    assert len(service.requests) == 1


@pytest.mark.parametrize("token", ["two\nlines", "a space", "r\u00e9sum\u00e9", "\x00"])
def test_what_can_be_no_token_is_refused_unsent_and_not_shown(token):
    with pytest.raises(ClientError, match="expected a token of ASCII characters") as refused:
        Client("http://service", token)
    assert token not in str(refused.value)


@pytest.mark.parametrize("url", ["nonsense", "ftp://service", "http://", "http://:x"])
def test_what_is_no_url_of_a_service_is_told_at_once(url):
    with pytest.raises(ClientError, match="expected an http:// or https:// URL of the service"):
        Client(url, "secret")


def test_a_service_that_stays_away_is_an_api_error():
    with pytest.raises(ApiError, match="503"):
        Service(answers({}, 503)).client().job("job_1")


def test_retry_after_is_honoured_within_a_bound():
    retry = {"Retry-After": "2"}, {"Retry-After": "3600"}
    service = Service(*(answers({}, 503, **headers) for headers in retry), answers(JOB))
    service.client().job("job_1")
    assert service.pauses == [2.0, 5.0]


def test_a_problem_becomes_an_error_with_pointers():
    problem = {
        "type": "urn:roadless:problem:invalid",
        "title": "Invalid request",
        "status": 422,
        "detail": "see errors",
        "instance": "/v1/jobs",
        "request_id": "1",
        "errors": [{"pointer": "/training/batch_size", "message": "expected at least 1, saw -1"}],
    }
    service = Service(answers(problem, 422))
    with pytest.raises(ApiError) as caught:
        service.client().submit({"training": {"batch_size": -1}})
    assert (caught.value.status, caught.value.title) == (422, "Invalid request")
    assert caught.value.errors[0].pointer == "/training/batch_size"
    assert len(service.requests) == 1
    assert json.loads(service.requests[0].content) == {"training": {"batch_size": -1}}


def test_an_error_that_is_no_problem_is_still_readable():
    service = Service(lambda request: httpx.Response(502, text="<h1>Bad Gateway</h1>"))
    with pytest.raises(ApiError, match="502 Bad Gateway: <h1>Bad Gateway"):
        service.client().job("job_1")


def test_a_spec_as_a_value_is_sent_whole():
    service = Service(answers(JOB, 201))
    spec = JobSpec.model_validate(SPEC)
    service.client().submit(spec)
    assert JobSpec.model_validate_json(service.requests[0].content) == spec


def test_pages_are_followed_to_the_end():
    first = {"data": [JOB], "last_id": "job_1", "has_more": True}
    second = {"data": [JOB | {"id": "job_0"}], "last_id": "job_0", "has_more": False}
    service = Service(answers(first), answers(second))
    assert [job.id for job in service.client().jobs(phase=Phase.RUNNING)] == ["job_1", "job_0"]
    asked = [dict(request.url.params) for request in service.requests]
    assert asked[0] == {"limit": "200", "phase": "RUNNING"}
    assert asked[1] == {"limit": "200", "phase": "RUNNING", "after": "job_1"}


def test_verbs_send_what_they_are_told_and_a_key_of_their_own():
    service = Service(answers(JOB, 202))
    client = service.client()
    client.pause("job_1", checkpoint="latest")
    client.resume("job_1")
    client.extend("job_1", Extend(steps=5, plan={"kind": "keep_last_rate"}))
    client.extend("job_1")
    client.retry("job_1")
    paths = [request.url.path.rpartition("/")[2] for request in service.requests]
    assert paths == ["pause", "resume", "extend", "extend", "retry"]
    bodies = [json.loads(request.content or "null") for request in service.requests]
    assert bodies[0] == {"checkpoint": "latest"}
    assert bodies[2] == {"steps": 5, "plan": {"kind": "keep_last_rate"}}
    assert bodies[1] is bodies[3] is bodies[4] is None
    assert len({request.headers["Idempotency-Key"] for request in service.requests}) == 5


def test_a_change_names_the_version_that_was_read_and_only_what_changes():
    service = Service(answers(JOB | {"version": 7}))
    client = service.client()
    client.patch(client.job("job_1"), JobPatch(budget=None))
    sent = service.requests[1]
    assert (sent.method, sent.headers["If-Match"]) == ("PATCH", '"7"')
    assert json.loads(sent.content) == {"budget": None}


def test_a_delete_has_no_answer():
    service = Service(lambda request: httpx.Response(204))
    service.client().delete("job_1")
    assert (service.requests[0].method, service.requests[0].url.path) == (
        "DELETE",
        "/v1/jobs/job_1",
    )


def test_an_eval_curve_longer_than_one_answer_is_fetched_whole():
    def point(step: int) -> dict[str, object]:
        numbers = dict.fromkeys(("samples", "tokens", "wall_seconds", "gpu_seconds", "loss"), 0)
        return numbers | {"step": step, "metrics": {}}

    def part(request: httpx.Request) -> httpx.Response:
        since = int(request.url.params.get("since", -1))
        steps = [step for step in (0, 10, 20) if step > since][:2]
        return httpx.Response(200, json={"job_id": "job_1", "data": [point(s) for s in steps]})

    assert [p.step for p in Service(part).client().eval_curve("job_1")] == [0, 10, 20]


def test_waiting_ends_at_the_phase_asked_for_and_at_any_end():
    phases = [answers(JOB | {"phase": phase}) for phase in ("QUEUED", "STARTING", "RUNNING")]
    service = Service(*phases)
    assert service.client().wait("job_1", {Phase.RUNNING}).phase is Phase.RUNNING
    assert len(service.requests) == 3
    failed = Service(answers(JOB | {"phase": "FAILED"})).client()
    assert failed.wait("job_1", {Phase.RUNNING}).phase is Phase.FAILED


def test_waiting_gives_up():
    with pytest.raises(WaitTimeout, match=r"expected SUCCEEDED within 0\.0 s, saw RUNNING"):
        Service(answers(JOB)).client().wait("job_1", {Phase.SUCCEEDED}, timeout=0.0)


def test_a_download_that_is_cut_goes_on_where_it_was(tmp_path):
    service = Service(
        lambda request: httpx.Response(200, stream=Cut(BYTES, size=1000)), serves_file
    )
    heard: list[int] = []
    target = tmp_path / FILE.name
    service.client().download_file("ckpt_1", FILE, target, on_progress=heard.append)
    assert target.read_bytes() == BYTES
    assert service.requests[1].headers["Range"] == "bytes=1000-"
    assert heard[0] == 1000
    assert heard == sorted(heard)
    assert heard[-1] == FILE.size
    assert list(tmp_path.iterdir()) == [target]


def test_a_part_left_by_an_earlier_process_is_gone_on_with(tmp_path):
    target = tmp_path / FILE.name
    (tmp_path / f"{FILE.name}.part").write_bytes(BYTES[:77])
    service = Service(serves_file)
    service.client().download_file("ckpt_1", FILE, target)
    assert target.read_bytes() == BYTES
    assert service.requests[0].headers["Range"] == "bytes=77-"


def test_a_service_that_answers_a_range_with_the_whole_file_starts_over(tmp_path):
    target = tmp_path / FILE.name
    (tmp_path / f"{FILE.name}.part").write_bytes(b"something else")
    Service(lambda request: httpx.Response(200, content=BYTES)).client().download_file(
        "ckpt_1", FILE, target
    )
    assert target.read_bytes() == BYTES


def test_bytes_that_differ_from_the_manifest_never_get_the_name(tmp_path):
    service = Service(lambda request: httpx.Response(200, content=BYTES[:-1] + b"!"))
    with pytest.raises(Corrupt, match="expected 256000 bytes with sha256"):
        service.client().download_file("ckpt_1", FILE, tmp_path / FILE.name)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_is_refused_leaves_nothing(tmp_path):
    with pytest.raises(ApiError, match="404"):
        Service(answers({}, 404)).client().download_file("ckpt_1", FILE, tmp_path / FILE.name)
    assert list(tmp_path.iterdir()) == []


def test_downloading_a_checkpoint_writes_its_files_and_its_manifest(tmp_path):
    empty = CheckpointFile(name="empty", size=0, sha256=hashlib.sha256(b"").hexdigest())
    checkpoint = {
        "id": "ckpt_1",
        "job_id": "job_1",
        "attempt_id": "att_1",
        "kind": "eval",
        "step": 5,
        "samples": 320,
        "pinned": False,
        "created_at": "2025-01-01T00:00:00Z",
        "total_bytes": FILE.size,
        "spec": SPEC,
        "files": [FILE.model_dump(), empty.model_dump()],
    }
    service = Service(
        answers(checkpoint), serves_file, lambda request: httpx.Response(200, content=b"")
    )
    heard: list[int] = []
    folder = tmp_path / "new" / "folder"
    made = service.client().download("ckpt_1", folder, on_progress=heard.append)
    assert (folder / FILE.name).read_bytes() == BYTES
    assert (folder / "empty").read_bytes() == b""
    assert Manifest.model_validate_json((folder / "manifest.json").read_text()) == made
    assert (made.kind, made.step, made.spec["task"]) == (CheckpointKind.EVAL, 5, "classification")
    assert heard[-1] == FILE.size


def test_url_and_token_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("ROADLESS_TOKEN", raising=False)
    monkeypatch.setenv("ROADLESS_HOME", str(tmp_path))
    monkeypatch.setenv("ROADLESS_URL", "http://elsewhere:1")
    (tmp_path / "user.token").write_text("from-file\n")
    service = Service(answers(JOB))
    with Client(transport=httpx.MockTransport(service)) as client:
        client.job("job_1")
    assert service.requests[0].url.host == "elsewhere"
    assert service.requests[0].headers["Authorization"] == "Bearer from-file"
    monkeypatch.setenv("ROADLESS_TOKEN", "from-environment")
    Client(transport=httpx.MockTransport(service)).job("job_1")
    assert service.requests[1].headers["Authorization"] == "Bearer from-environment"


def test_a_missing_token_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("ROADLESS_TOKEN", raising=False)
    monkeypatch.setenv("ROADLESS_HOME", str(tmp_path))
    with pytest.raises(ClientError, match=r"ROADLESS_TOKEN or in .*user\.token"):
        Client()
