"""A folder on the node where prepared data is made once and found by every later rank.

An entry is a folder named by its key. It is made under another name, flushed and renamed, so an
entry that exists is complete. A kernel lock, released when its holder dies, lets one rank make it
while the others wait, and keeps it from being evicted while any rank uses it.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from roadless.worker.errors import DataInvalid

_LOCKS = "locks"
_WORK_SUFFIX = ".part"
#: How often a rank checks whether the preparing one is done.
_POLL_SECONDS = 0.2


class CacheFull(Exception):
    """Other jobs leave no room in the cache; another attempt may find some."""


class Cache:
    """Entries of ``folder``, together at most ``max_bytes``; the least recently used go first."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        (folder / _LOCKS).mkdir(parents=True, exist_ok=True, mode=0o700)

    def entry(self, key: str, *, make: Callable[[Path], None], wait: Callable[[], None]) -> Path:
        """Return the entry's folder, which stays as long as this process lives.

        ``make`` fills the folder that it is given, and is called when there is no entry yet; its
        exceptions propagate and leave nothing behind. ``wait`` is called repeatedly while another
        rank makes the entry.
        """
        target = self._folder / key
        while not self._is_kept(target):
            with self._locked(key, fcntl.LOCK_EX) as is_mine:
                if is_mine and not target.exists():
                    self._make(target, make)
            if not is_mine:
                wait()
                time.sleep(_POLL_SECONDS)
        os.utime(target)
        return target

    def make_room(self, work: Path) -> None:
        """Evict until everything, including the folder ``work`` that is being filled, fits.

        Raises DataInvalid when that folder alone does not fit, and CacheFull when the others are in
        use.
        """
        needed = size_of(work)
        if needed > self._max_bytes:
            raise DataInvalid(
                f"expected data that takes at most {self._max_bytes} bytes when prepared, the "
                f"limit of this node's cache, saw {needed} and more"
            )
        others = sorted(set(self._folders()) - {work}, key=_used_at)
        total = needed + sum(size_of(path) for path in others)
        for path in others:
            if total <= self._max_bytes:
                return
            size = size_of(path)
            total -= size if self._drop(path) else 0
        if total > self._max_bytes:
            raise CacheFull(
                f"expected room in this node's cache of {self._max_bytes} bytes, saw "
                f"{total - needed} in use by other jobs"
            )

    def _make(self, target: Path, make: Callable[[Path], None]) -> None:
        work = target.with_name(target.name + _WORK_SUFFIX)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        try:
            make(work)
            self.make_room(work)
            _flush(work)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.name != _LOCKS]

    def _drop(self, path: Path) -> bool:
        """Remove an entry that nobody uses, or what a killed rank left of one."""
        key = path.name.removesuffix(_WORK_SUFFIX)
        with self._locked(key, fcntl.LOCK_EX) as is_mine:
            if is_mine:
                shutil.rmtree(path, ignore_errors=True)
                self._lock_path(key).unlink(missing_ok=True)
        return is_mine

    # ---- locks ---------------------------------------------------------------------------------

    def _is_kept(self, target: Path) -> bool:
        """Whether the entry exists and is now locked for us, until this process ends."""
        lock = self._lock(target.name, fcntl.LOCK_SH)
        if lock is not None and not target.exists():
            os.close(lock)
            return False
        return lock is not None

    @contextmanager
    def _locked(self, key: str, kind: int) -> Iterator[bool]:
        lock = self._lock(key, kind)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def _lock(self, key: str, kind: int) -> int | None:
        """Take the lock if it is free; return its descriptor, which holds it while it is open."""
        path = self._lock_path(key)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            # An evictor may have removed the file between our opening and our locking it.
            if os.fstat(lock).st_ino == path.stat().st_ino:
                return lock
        os.close(lock)
        return None

    def _lock_path(self, key: str) -> Path:
        return self._folder / _LOCKS / key


def size_of(folder: Path) -> int:
    """Total bytes of the files below the folder that still exist."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _used_at(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _flush(folder: Path) -> None:
    """Flush the content before the rename: a power failure leaves a complete entry or none."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
