"""Around every request: an id, a bound on its body, HEAD, and security headers for browsers."""

import secrets

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roadless.service.errors import TooLarge, UnsupportedEncoding

#: Key of a scope whose method is GET in the place of a client's HEAD: nothing of the body is sent.
IS_HEAD = "roadless.is_head"

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class RequestGuard:
    """Gives each request an id, and stops reading a body that is larger than allowed or compressed.

    Uploads of checkpoint files (PUT) are streamed to disk and have no such bound. HEAD is GET
    without the body.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, guarded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        Request(scope).state.request_id = request_id
        plain = _uncompressed(receive, Headers(scope=scope))
        bounded = plain if scope["method"] == "PUT" else self._bounded(plain)
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

    def _bounded(self, receive: Receive) -> Receive:
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body_bytes:
                raise TooLarge(f"expected at most {self._max_body_bytes} bytes, saw more")
            return message

        return bounded


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
