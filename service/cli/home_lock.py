"""One ``roadless up`` for each home: who holds it, and what one that was killed has left running.

Two of them would share a database, and each would take the other's jobs for its own.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

LOCK_FILE = "up.lock"
#: What the command line of each process that ``roadless up`` starts has in it.
_OURS = b"roadless."


class HomeTaken(Exception):
    """Another ``roadless up`` has this home, or has left processes on it."""


@dataclass(frozen=True)
class Holder:
    """What the lock file says: who holds the home, where it answers, and what it has started."""

    pid: int
    url: str
    children: Mapping[str, int]

    @classmethod
    def read(cls, file: TextIO) -> "Holder | None":
        """Return what the file says; None when it says nothing, or not yet."""
        file.seek(0)
        try:
            said: dict[str, Any] = json.loads(file.read())
            return cls(said["pid"], said["url"], said["children"])
        except (ValueError, TypeError, KeyError):
            return None

    def write(self, file: TextIO) -> None:
        """Replace what the file says."""
        file.truncate(0)
        file.write(json.dumps({"pid": self.pid, "url": self.url, "children": self.children}))
        file.flush()

    def left_running(self) -> dict[str, int]:
        """Those of its processes that still run, told by their command lines."""
        return {name: pid for name, pid in self.children.items() if _is_ours(pid)}


def require_free(home: Path) -> None:
    """Raise HomeTaken if the home is held, or processes were left on it; makes nothing."""
    with suppress(OSError), (home / LOCK_FILE).open("r+") as file:
        _lock(file, home)
        _require_nothing_left(Holder.read(file), home)


@contextmanager
def held(home: Path, *, url: str) -> Iterator[Callable[[Mapping[str, int]], None]]:
    """Hold the home, which the kernel frees with this process, and say in it who holds it.

    Yields a function that records which processes run, by name. Raises HomeTaken.
    """
    path = home / LOCK_FILE
    with open(path, "a+", opener=_private) as file:
        _lock(file, home)
        recorded: dict[str, int] = {}
        Holder(os.getpid(), url, recorded).write(file)

        def record(children: Mapping[str, int]) -> None:
            if children != recorded:
                recorded.update(children)
                Holder(os.getpid(), url, recorded).write(file)

        yield record
        file.truncate(0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock(file: TextIO, home: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = Holder.read(file)
        seen = f"process {holder.pid} at {holder.url}" if holder else "one that starts or stops"
        raise HomeTaken(
            f"expected no other roadless up on {home}, saw {seen}; stop that one first, or choose "
            "another folder with --home and another port with --port"
        ) from error


def _require_nothing_left(holder: Holder | None, home: Path) -> None:
    left = holder.left_running() if holder else {}
    if holder and left:
        names = ", ".join(f"{name} ({pid})" for name, pid in left.items())
        raise HomeTaken(
            f"expected nothing that runs on {home}, saw that process {holder.pid} has gone and "
            f"left running: {names}; end them first: kill {' '.join(map(str, left.values()))}"
        )


def _is_ours(pid: int) -> bool:
    """Whether the process runs and is one of ours, and not another that was given its number."""
    try:
        return _OURS in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
