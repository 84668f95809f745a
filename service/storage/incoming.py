"""An upload in progress, on the service's disk: what has arrived outlives connection and service.

It has one writer at a time, which holds its lock; the kernel frees the lock with its process.
"""

import contextlib
import fcntl
import hashlib
import os
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from roadless.service.errors import Unavailable
from roadless.service.storage.blobs import REST
from roadless.service.storage.disk import needing_room

_READ_BYTES = 1 << 20


class Incoming:
    """The file at ``path``, made with its folder if it is absent.

    Raises Unavailable while another writes it, or there is no room.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with needing_room(path.parent):
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self._file = path.open("ab", buffering=0)
        if not is_locked_by(self._file.fileno(), path):
            self._file.close()
            raise Unavailable(
                "expected one connection that uploads this file, saw another; try again once it "
                "has ended"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def num_bytes(self) -> int:
        """How much has arrived."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, chunk: bytes) -> None:
        """Append to what is there; a full disk takes what it can and raises Unavailable."""
        left = memoryview(chunk)
        with needing_room(self.path.parent):
            while left:
                left = left[self._file.write(left) :]

    def sha256(self) -> str:
        """The hash of all that has arrived, read from the disk."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self) -> None:
        """Delete what has arrived."""
        self.path.unlink(missing_ok=True)


def is_locked_by(descriptor: int, path: Path) -> bool:
    """Take the lock of the open file if nobody has it; whether we do, and it is still at ``path``.

    Its last writer may have moved the file away after we opened it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def remove_abandoned_uploads(folder: Path, *, now: datetime) -> int:
    """Delete the remains of uploads that nobody continues; return how many."""
    num_deleted, before = 0, (now - REST).timestamp()
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # its upload has just ended
            if path.stat().st_mtime < before and _is_left(path):
                path.unlink()
                num_deleted += 1
    return num_deleted


def _is_left(path: Path) -> bool:
    """Whether nobody holds the file: storing one that has arrived may take long."""
    with path.open("rb") as file:
        return is_locked_by(file.fileno(), path)
