"""Where files live: a tiny protocol, and a fake beside it.

A key names the content's hash (see ``keys.py``), so a blob that exists is complete and right. The
real stores are ``local_blobs.py``, a folder, and ``s3_blobs.py``, a bucket.
"""

from collections.abc import Generator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from roadless.service.clock import utc_now
from roadless.service.errors import BlobMissing

#: How long a file must have been left alone: far longer than any upload pauses.
REST = timedelta(hours=1)
#: How long a store may take over one file before a partial one counts as left behind.
LONGEST_PUT = timedelta(days=1)
#: What a reader gets at a time, which is what a download holds in memory.
CHUNK_BYTES = 1 << 20


class Content(Protocol):
    """The bytes of a blob, chunk by chunk. At the end, or with ``close``, nothing stays open."""

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, once."""

    def __next__(self) -> bytes:
        """The next one."""

    def close(self) -> None:
        """Let go of file or connection. Again: no change."""


class BlobStore(Protocol):
    """Keys are ``/``-separated names that we made ourselves, never parts of a request.

    A store that is away, or whose disk is full, raises Unavailable; nothing is lost.
    """

    def put(self, key: str, source: Path) -> None:
        """Move the file ``source`` in; the blob appears whole or not at all. Repeatable."""

    def size(self, key: str) -> int | None:
        """Bytes of the blob, or None when there is none."""

    def read(self, key: str, start: int, stop: int) -> Content:
        """Bytes ``start`` to ``stop`` (exclusive); raises BlobMissing immediately if absent."""

    def delete(self, prefix: str) -> None:
        """Remove every blob below ``prefix/``; absent ones are no error."""

    def folders(self, *, before: datetime) -> Iterator[str]:
        """Folders of checkpoints (see ``keys.py``) in which nothing was stored since ``before``."""

    def drop_unfinished(self, *, before: datetime) -> int:
        """Remove the remains of puts that began before then and never ended; return how many."""


class MemoryBlobs:
    """The fake: same contract, held in a dictionary; for tests."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._stored_at: dict[str, datetime] = {}

    def put(self, key: str, source: Path) -> None:
        """Take the file's content and remove the file, as a move would."""
        self._blobs[key] = source.read_bytes()
        self._stored_at[key.rsplit("/", 2)[0]] = utc_now()
        source.unlink()

    def size(self, key: str) -> int | None:
        """Bytes of the content."""
        blob = self._blobs.get(key)
        return None if blob is None else len(blob)

    def read(self, key: str, start: int, stop: int) -> Content:
        """One slice."""
        if key not in self._blobs:
            raise BlobMissing
        return _one(self._blobs[key][start:stop])

    def delete(self, prefix: str) -> None:
        """Forget the keys below the prefix."""
        for key in [key for key in self._blobs if key.startswith(f"{prefix}/")]:
            del self._blobs[key]
        self._stored_at.pop(prefix, None)

    def folders(self, *, before: datetime) -> Iterator[str]:
        """Those last written before then."""
        return iter([key for key, at in self._stored_at.items() if at < before])

    def drop_unfinished(self, *, before: datetime) -> int:  # noqa: ARG002  nothing is unfinished
        """Every put is complete here."""
        return 0


def _one(chunk: bytes) -> Generator[bytes]:
    yield chunk
