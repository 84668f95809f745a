"""Around every request: bounds that hold before the route, and headers that browsers heed."""

import asyncio

import pytest

from roadless.service.errors import TooLarge
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
