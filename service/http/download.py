"""Downloads: bytes of the blob store as an answer, whose files are closed however it ends."""

from collections.abc import Callable, Iterator, Mapping

import anyio
import anyio.to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from roadless.service.http.middleware import IS_HEAD


def is_head(request: Request) -> bool:
    """Whether the client sent HEAD, which routes see as GET."""
    return bool(request.scope.get(IS_HEAD))


class Download(StreamingResponse):
    """Streams chunks; then, and when the client has left or sent HEAD, closes what they come from.

    Starlette (1.10) leaves the iterator of an answer that was cut off to the garbage collector, and
    its file open until then.

    Its ``media_type`` is that of the class.

    Args:
        chunks: the bytes.
        size: how many there are.
        close: what closes their source; called once, on a thread.
        status_code: of the answer.
        headers: beside Content-Length.
    """

    media_type = "application/octet-stream"

    def __init__(
        self,
        chunks: Iterator[bytes],
        *,
        size: int,
        close: Callable[[], None],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            chunks,
            status_code=status_code,
            headers={"Content-Length": str(size), **(headers or {})},
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; of HEAD, only its beginning."""
        try:
            if scope.get(IS_HEAD):
                await self._send_beginning(send)
            else:
                await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._close)

    async def _send_beginning(self, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


class Archive(Download):
    """A download of several files as one."""

    media_type = "application/x-tar"
