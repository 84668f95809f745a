"""The processes of one ``roadless up``, found by the mark that each of them inherits.

A process that was killed leaves children that are below nobody, and a number in a file may be
another process's by now. The mark is what the kernel shows as a process's first environment, so it
is neither lost nor given to a stranger.
"""

import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from roadless.service.contract.environment import STACK_VARIABLE

#: How long killed processes may take to be gone.
KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02


def mark(part: str, home: Path) -> dict[str, str]:
    """The variable that makes a process, and all that it starts, a ``part`` of the home's stack."""
    return {STACK_VARIABLE: f"{part}@{home}"}


@dataclass(frozen=True)
class Killed:
    """What was found, and what of it the kernel still holds: process id to part."""

    found: Mapping[int, str]
    left: Mapping[int, str]


def kill(home: Path, *, parts: Collection[str]) -> Killed:
    """Kill all processes of these parts, and those that they start meanwhile; never this one.

    Returns once they are gone, or after KILL_SECONDS.
    """
    marks = {f"{STACK_VARIABLE}={part}@{home}".encode(): part for part in parts}
    give_up_at = time.monotonic() + KILL_SECONDS
    found: dict[int, str] = {}
    while (left := _kill_once(marks)) and time.monotonic() < give_up_at:
        found |= left
        time.sleep(_POLL_SECONDS)
    return Killed(found, left)


def _kill_once(marks: Mapping[bytes, str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for pid in _others():
        with _pinned(pid) as pidfd:
            if pidfd is not None and (part := _part(pid, marks)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                found[pid] = part
    return found


def _others() -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid()]


@contextmanager
def _pinned(pid: int) -> Iterator[int | None]:
    """A descriptor of the process: a signal sent through it reaches no other of the same number."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = None
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _part(pid: int, marks: Mapping[bytes, str]) -> str | None:
    """Which of the parts the process is; None: a stranger, or one that has ended."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((marks[entry] for entry in environment if entry in marks), None)
