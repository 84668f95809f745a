"""A wheel on its way in: from the request to the disk, bounded and hashed."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi import Request

from service.checkpoints.incoming import Incoming
from service.contract.wheels import MAX_WHEEL_BYTES
from service.errors import Invalid, TooLarge, Unavailable

#: Silence in the midst of a body after which its connection counts as broken.
IDLE_SECONDS = 30.0


@dataclass(frozen=True)
class Arrived:
    """A wheel's bytes on the service's disk."""

    path: Path
    size: int
    sha256: str


@asynccontextmanager
async def arriving(request: Request, *, folder: Path, sha256: str) -> AsyncIterator[Arrived]:
    """Take the body of a request in; of what is not moved away nothing stays.

    ``folder``: for files on their way in. Raises TooLarge, and Invalid for another hash.
    """
    folder.mkdir(exist_ok=True)
    with Incoming(folder / secrets.token_hex(16)) as incoming:
        try:
            await _append(incoming, request.stream())
            seen = await anyio.to_thread.run_sync(incoming.sha256)
            if seen != sha256:
                raise Invalid(f"expected content with SHA-256 {sha256}, saw {seen}")
            yield Arrived(incoming.path, incoming.num_bytes, seen)
        finally:
            incoming.remove()


async def _append(incoming: Incoming, chunks: AsyncIterator[bytes]) -> None:
    num_bytes = 0
    while chunk := await _next(chunks):
        num_bytes += len(chunk)
        if num_bytes > MAX_WHEEL_BYTES:
            raise TooLarge(f"expected a wheel of at most {MAX_WHEEL_BYTES} bytes, saw more")
        await anyio.to_thread.run_sync(incoming.append, chunk)


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    """The next chunk; nothing at the end."""
    try:
        with anyio.fail_after(IDLE_SECONDS):
            return await anext(chunks, b"")
    except TimeoutError as error:
        raise Unavailable(f"nothing came for {IDLE_SECONDS:g} s; try again") from error
