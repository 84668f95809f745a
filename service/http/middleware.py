"""Around every request: an id, bounds on its body, HEAD, and security headers for browsers."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roadless.service.errors import RequestTimeout, TooLarge, UnsupportedEncoding

#: A body of users; the longest specification that is accepted is shorter.
MAX_USERS_BODY_BYTES = 2 * 2**20
#: Until a body is here; of a file, until there is more of it.
BODY_SECONDS = 60.0

#: Key of a scope whose method is GET in the place of a client's HEAD: nothing of the body is sent.
IS_HEAD = "roadless.is_head"

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


_MAX_BODY_BYTES = "roadless_max_body_bytes"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def takes_up_to(num_bytes: int) -> Callable[[Endpoint], Endpoint]:
    """Bound the body of an endpoint, instead of `MAX_USERS_BODY_BYTES`."""

    def bounded(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _MAX_BODY_BYTES, num_bytes)
        return endpoint

    return bounded


def is_users(path: str) -> bool:
    """Whether users ask there; elsewhere our own processes do, or anybody."""
    return path.startswith("/v1/")


class RequestGuard:
    """Gives each request an id, and stops reading a body that is too large, too slow or compressed.

    Uploads of files (PUT) are streamed to disk and have no bound here. HEAD is GET without the
    body.

    Args:
        app: what is guarded.
        max_body_bytes: of any request; routes may take less.
        body_seconds: until a body is here.
    """

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, body_seconds: float = BODY_SECONDS
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, guarded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        Request(scope).state.request_id = request_id
        plain = _uncompressed(receive, Headers(scope=scope))
        timely = _timely(plain, seconds=self._body_seconds, is_file=scope["method"] == "PUT")
        bounded = timely if scope["method"] == "PUT" else self._bounded(timely, scope)
        answer = self._head if scope["method"] == "HEAD" else self._app
        await answer(scope, bounded, _with_headers(send, request_id))

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As GET, unless the route has a HEAD of its own.

        FastAPI (0.163) answers HEAD of a GET route with 405, where Starlette's own routes have it.
        """
        is_refused = False

        async def sending(message: Message) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start":
                is_refused = message["status"] == 405
            if not is_refused:
                await send(message)

        await self._app(dict(scope), receive, sending)
        if is_refused:
            await self._app({**scope, "method": "GET", IS_HEAD: True}, receive, _without_body(send))

    def _bounded(self, receive: Receive, scope: Scope) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            bound = min(self._max_body_bytes, _bound_of(scope))
            if seen > bound:
                raise TooLarge(f"expected at most {bound} bytes, saw more")
            return message

        return bounded


def _bound_of(scope: Scope) -> float:
    """That of the endpoint, which is known by the time that it reads."""
    usual = MAX_USERS_BODY_BYTES if is_users(scope["path"]) else float("inf")
    return getattr(scope.get("endpoint"), _MAX_BODY_BYTES, usual)


def _timely(receive: Receive, *, seconds: float, is_file: bool) -> Receive:
    """Wait for a body for so long in all, or for its next bytes ``if is_file``."""
    until: float | None = None
    is_here = False

    async def timely() -> Message:
        nonlocal until, is_here
        if is_here:  # what may come now is that the client leaves
            return await receive()
        if until is None or is_file:
            until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError as error:
            raise RequestTimeout(f"expected the body within {seconds:g} s, saw less") from error
        is_here = not message.get("more_body", False)
        return message

    return timely


def _uncompressed(receive: Receive, headers: Headers) -> Receive:
    """Refuse a compressed body when it is read: it would be stored as it is, or be no JSON."""
    codings = [one.strip() for one in ",".join(headers.getlist("content-encoding")).split(",")]
    unknown = [one for one in codings if one.lower() not in ("", "identity")]

    async def refusing() -> Message:
        raise UnsupportedEncoding(
            f"expected a body without Content-Encoding, saw {', '.join(unknown)[:80]!r}; "
            "send it uncompressed"
        )

    return refusing if unknown else receive


def _without_body(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": b""})

    return sending


def _with_headers(send: Send, request_id: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            extra = {**_HEADERS, "x-request-id": request_id}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.encode(), value.encode())
                    for name, value in extra.items()
                    if name.encode() not in present
                ),
            ]
        await send(message)

    return sending
