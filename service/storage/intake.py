"""Receives files: whole, or in parts that resume where a connection broke.

A part is appended to what has arrived on the service's disk. With the last byte the hash of the
whole is checked and the blob is stored; only then does it exist.
"""

import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from roadless.service.errors import Conflict, Invalid, TooLarge, Unavailable
from roadless.service.storage.blobs import BlobStore
from roadless.service.storage.incoming import Incoming

#: Silence in the middle of a body after which its connection counts as broken.
IDLE_SECONDS = 30.0
#: Files that are hashed and stored at the same time; others wait for their turn.
STORING_THREADS = 4


@dataclass(frozen=True)
class Target:
    """Where a file goes: the key of its blob, and the SHA-256 that its content must have."""

    key: str
    sha256: str


@dataclass(frozen=True)
class Arrived:
    """How many bytes of a file are here. ``is_stored``: all are, and the blob exists."""

    num_bytes: int
    is_stored: bool


@dataclass(frozen=True)
class Intake:
    """Receives files. ``folder``: for what is arriving; ``max_bytes``: of one file."""

    folder: Path
    blobs: BlobStore
    max_bytes: int
    storing: anyio.CapacityLimiter

    async def take(self, chunks: AsyncIterator[bytes], target: Target) -> None:
        """Store a file sent in one piece; an incomplete one leaves nothing behind."""
        with Incoming(self.folder / secrets.token_hex(16)) as incoming:
            try:
                await append(incoming, chunks, max_bytes=self.max_bytes)
                await self._store(incoming, target)
            finally:
                incoming.remove()

    async def take_part(
        self, chunks: AsyncIterator[bytes], target: Target, *, offset: int, length: int
    ) -> Arrived:
        """Append the bytes from ``offset`` on, and store the file when ``length`` are here.

        Raises Conflict if another byte is the next one, Invalid if the whole has another hash,
        in which case it is deleted.
        """
        if length > self.max_bytes:
            raise TooLarge(f"expected a file of at most {self.max_bytes} bytes, saw {length}")
        with Incoming(self._path(target)) as incoming:
            if incoming.num_bytes != offset:
                raise Conflict(f"expected offset {incoming.num_bytes}, saw {offset}")
            await append(incoming, chunks, max_bytes=length)
            arrived = Arrived(incoming.num_bytes, is_stored=incoming.num_bytes == length)
            if arrived.is_stored:
                await self._store(incoming, target)
        return arrived

    def arrived(self, target: Target) -> Arrived:
        """How much has arrived of a file sent in parts."""
        if num_bytes := _size(self._path(target)):
            return Arrived(num_bytes, is_stored=False)
        stored = self.blobs.size(target.key)
        return Arrived(stored or 0, is_stored=stored is not None)

    async def _store(self, incoming: Incoming, target: Target) -> None:
        await anyio.to_thread.run_sync(_check, incoming, target, limiter=self.storing)
        await anyio.to_thread.run_sync(
            self.blobs.put, target.key, incoming.path, limiter=self.storing
        )

    def _path(self, target: Target) -> Path:
        return self.folder / hashlib.sha256(target.key.encode()).hexdigest()


async def append(
    incoming: Incoming, chunks: AsyncIterator[bytes], *, max_bytes: int, what: str = "file"
) -> None:
    """Append what arrives to the file, which may then have ``max_bytes`` bytes.

    Raises TooLarge if it would have more, and Unavailable if nothing arrives for `IDLE_SECONDS`.
    """
    num_bytes = incoming.num_bytes
    async for chunk in _without_silence(chunks):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise TooLarge(f"expected a {what} of at most {max_bytes} bytes, saw more")
        await anyio.to_thread.run_sync(incoming.append, chunk)


async def _without_silence(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            with anyio.fail_after(IDLE_SECONDS):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Unavailable(
                f"expected the rest of the body, but nothing came for {IDLE_SECONDS:g} s; try again"
            ) from error
        yield chunk


def _size(path: Path) -> int:
    """Bytes of the file; 0 where there is none, as it may be moved into the store at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check(incoming: Incoming, target: Target) -> None:
    seen = incoming.sha256()
    if seen != target.sha256:
        incoming.remove()
        raise Invalid(f"expected content with SHA-256 {target.sha256}, saw {seen}")
