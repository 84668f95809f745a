"""Around every request: bounds that hold before the route, and headers that browsers heed."""

import asyncio
import contextlib
import gzip
import hashlib
import json

import pytest
from played import eval_event

from roadless.service.contract.ids import new_id
from roadless.service.errors import RequestTimeout, TooLarge
from roadless.service.http.middleware import RequestGuard


@pytest.fixture
def database_url(tmp_path):
    """What is around a request does not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


async def read_all(scope, receive, send):
    """An app that reads its body to the end."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % len(body)})


def exchange(*, method="POST", chunks, max_body_bytes=10, app=read_all, kind="http"):
    """Send the chunks through a guard; what was sent back, and how many chunks were taken."""
    left, sent = list(chunks), []

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    guard = RequestGuard(app, max_body_bytes=max_body_bytes)
    scope = {"type": kind, "method": method, "path": "/", "headers": []}
    asyncio.run(guard(scope, receive, send))
    return sent, len(chunks) - len(left)


def test_a_body_up_to_the_bound_passes():
    sent, _ = exchange(chunks=[b"12345", b"67890"])
    assert sent[1]["body"] == b"10"


def test_a_body_beyond_the_bound_is_not_read_on():
    taken = []

    async def app(scope, receive, send):
        for _ in range(100):
            taken.append(await receive())

    with pytest.raises(TooLarge, match="at most 10 bytes"):
        exchange(chunks=[b"123456"] * 100, app=app)
    assert len(taken) == 1


def test_an_upload_has_no_such_bound():
    sent, _ = exchange(method="PUT", chunks=[b"123456"] * 100)
    assert sent[1]["body"] == b"600"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_that_stops_coming_is_given_up(method):
    chunks = [b"1"]

    async def receive():
        if not chunks:
            await asyncio.sleep(30)
        return {"type": "http.request", "body": chunks.pop(), "more_body": True}

    guard = RequestGuard(read_all, max_body_bytes=10, body_seconds=0.01)
    scope = {"type": "http", "method": method, "path": "/", "headers": []}
    with pytest.raises(RequestTimeout, match=r"within 0.01 s"):
        asyncio.run(guard(scope, receive, None))


@pytest.mark.parametrize(("method", "is_cut"), [("POST", True), ("PUT", False)])
def test_a_body_that_trickles_is_given_up_and_a_file_is_not(method, is_cut):
    """Each of the ten bytes is in time; together they are not."""
    left = 10

    async def receive():
        nonlocal left
        await asyncio.sleep(0.1)
        left -= 1
        return {"type": "http.request", "body": b"1", "more_body": left > 0}

    async def send(message):
        assert message["type"] != "http.response.body" or message["body"] == b"10"

    guard = RequestGuard(read_all, max_body_bytes=10, body_seconds=0.8)
    scope = {"type": "http", "method": method, "path": "/", "headers": []}
    with pytest.raises(RequestTimeout) if is_cut else contextlib.nullcontext():
        asyncio.run(guard(scope, receive, send))


def test_who_has_sent_a_body_may_wait_for_its_answer():
    async def app(scope, receive, send):
        await receive()
        await receive()

    came = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive():
        await asyncio.sleep(0 if len(came) > 1 else 0.05)
        return came.pop(0)

    guard = RequestGuard(app, max_body_bytes=10, body_seconds=0.01)
    asyncio.run(
        guard({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, None)
    )
    assert came == []


def test_what_is_no_request_passes_untouched():
    sent, _ = exchange(kind="lifespan", chunks=[b"x" * 100])
    assert sent[0]["headers"] == []


def test_every_answer_carries_the_headers(service):
    for path in ("/healthz", "/v1/jobs", "/nowhere", "/login"):
        headers = service.http.get(path, headers=service.user).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert len(headers["x-request-id"]) == 16


def test_a_header_of_the_route_is_not_overridden():
    async def app(scope, receive, send):
        headers = [(b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    sent, _ = exchange(chunks=[b""], app=app)
    assert [value for name, value in sent[0]["headers"] if name == b"cache-control"] == [
        b"no-cache"
    ]


# ---- HEAD --------------------------------------------------------------------------------------


def get_routes(routes):
    """Paths of GET routes that users and the public may ask."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from get_routes(route.original_router.routes)
        elif "GET" in getattr(route, "methods", ()) and not route.path.startswith("/internal"):
            yield route.path


def test_head_is_get_without_its_body_on_every_route(service, digits_spec):
    job_id, rank = service.running(digits_spec)
    rank.report(eval_event(1))
    names = {
        "job_id": job_id,
        "checkpoint_id": rank.save(1),
        "name": "model.safetensors",
        "dataset_id": new_id("ds"),
        "wheel_id": new_id("whl"),
    }
    seen = set()
    for path in get_routes(service.http.app.router.routes):
        url = path.replace("/metrics/{name}", "/metrics/train.loss").format(**names)
        get, head = (
            service.http.request(method, url, headers=service.user, follow_redirects=False)
            for method in ("GET", "HEAD")
        )
        assert (head.status_code, head.content) == (get.status_code, b""), url
        told = [{**answer.headers, "x-request-id": ""} for answer in (get, head)]
        assert told[0] == told[1], url
        seen.add(get.status_code)
    assert seen >= {200, 303, 404}


def test_head_needs_what_get_needs(service):
    for path, status in (("/v1/jobs", 401), ("/nowhere", 404), ("/logout", 405)):
        assert service.http.head(path).status_code == status


def test_a_head_of_its_own_goes_before_that_of_get(service, digits_spec):
    """Of a file that ranks upload it tells how much has arrived."""
    _, rank = service.running(digits_spec)
    sha256 = hashlib.sha256(b"x").hexdigest()
    url = f"{rank.url}/checkpoints/{new_id('ckpt')}/files/a"
    answer = service.http.head(url, headers={**rank.headers, "X-Content-SHA256": sha256})
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, "0")


# ---- compressed bodies ---------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "identity, gzip", "GZIP"])
def test_a_compressed_body_is_refused_by_name(service, digits_spec, coding):
    packed = gzip.compress(json.dumps(digits_spec).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = service.post("/jobs", content=packed, headers=headers)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert answer.json()["type"] == "urn:roadless:problem:unsupported_encoding"
    assert coding.split(", ")[-1] in answer.json()["detail"]


def test_so_is_a_compressed_upload_although_its_hash_is_right(service, digits_spec):
    _, rank = service.running(digits_spec)
    packed = gzip.compress(b"x")
    headers = {
        **rank.headers,
        "X-Content-SHA256": hashlib.sha256(packed).hexdigest(),
        "Content-Encoding": "gzip",
    }
    url = f"{rank.url}/checkpoints/{new_id('ckpt')}/files/a"
    assert service.http.put(url, content=packed, headers=headers).status_code == 415
    secret = {**service.user, "Content-Encoding": "gzip"}
    answer = service.http.put("/v1/secrets/A_TOKEN", content=packed, headers=secret)
    assert answer.status_code == 415


def test_a_body_that_says_it_is_as_it_is_passes(service, digits_spec):
    answer = service.post("/jobs", json=digits_spec, headers={"Content-Encoding": "identity"})
    assert answer.status_code == 201
