"""One ``roadless up`` for each home: who holds it.

Two of them would share a database, and each would take the other's jobs for its own.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

LOCK_FILE = "up.lock"


class HomeTaken(Exception):
    """Another ``roadless up`` has this home."""


@dataclass(frozen=True)
class Holder:
    """What the lock file says: who holds the home, and where it answers."""

    pid: int
    url: str

    @classmethod
    def read(cls, file: TextIO) -> "Holder | None":
        """Return what the file says; None when it says nothing, or not yet."""
        file.seek(0)
        try:
            return cls(**json.loads(file.read()))
        except (ValueError, TypeError):
            return None

    def write(self, file: TextIO) -> None:
        """Replace what the file says."""
        file.truncate(0)
        file.write(json.dumps(asdict(self)))
        file.flush()


@contextmanager
def held(home: Path) -> Iterator[Callable[[str], None]]:
    """Hold the home, which the kernel frees with this process; raise HomeTaken if another does.

    Yields a function that tells whoever comes next the URL.
    """
    with open(home / LOCK_FILE, "a+", opener=_private) as file:
        _lock(file, home)
        file.truncate(0)  # what one that was killed has said
        yield lambda url: Holder(os.getpid(), url).write(file)
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
