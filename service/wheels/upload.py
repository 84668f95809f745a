"""The upload of a wheel: from the request to the disk, bounded and hashed."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi import Request

from roadless.service.contract.uploads.wheels import MAX_WHEEL_BYTES
from roadless.service.errors import Invalid
from roadless.service.storage.incoming import Incoming
from roadless.service.storage.intake import append


@dataclass(frozen=True)
class UploadedWheel:
    """A wheel's bytes on the service's disk."""

    path: Path
    size: int
    sha256: str


@asynccontextmanager
async def receive_wheel(
    request: Request, *, folder: Path, sha256: str
) -> AsyncIterator[UploadedWheel]:
    """Receive a request's body as a file, which is deleted unless it is moved away.

    ``folder``: for uploads in progress. Raises TooLarge, and Invalid for another hash.
    """
    with Incoming(folder / secrets.token_hex(16)) as incoming:
        try:
            await append(incoming, request.stream(), max_bytes=MAX_WHEEL_BYTES, what="wheel")
            seen = await anyio.to_thread.run_sync(incoming.sha256)
            if seen != sha256:
                raise Invalid(f"expected content with SHA-256 {sha256}, saw {seen}")
            yield UploadedWheel(incoming.path, incoming.num_bytes, seen)
        finally:
            incoming.remove()
