"""The processes of one ``roadless up``, found by the mark that each of them inherits.

A process that was killed leaves children that are below nobody, and a number in a file may be
another process's by now. The mark is in the environment that the kernel shows of a process, so no
stranger has it.
"""

import os
import signal
import time
from collections.abc import Collection, Mapping
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
    seen = _look(marks)
    found = {pid: part for pid in seen if (part := _part(pid, seen))}
    for pid in found:
        _kill(pid, seen[pid])
    return found


@dataclass(frozen=True)
class _Seen:
    """A process that has not ended. ``part``: by its own mark; None: it has none."""

    parent: int
    started: str  #: tells it from a later one of the same number
    part: str | None


def _look(marks: Mapping[bytes, str]) -> dict[int, _Seen]:
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    looks = {pid: _seen(pid, marks) for pid in pids if pid != os.getpid()}
    return {pid: seen for pid, seen in looks.items() if seen}


def _seen(pid: int, marks: Mapping[bytes, str]) -> _Seen | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if stat[0] == "Z":
        return None
    part = next((marks[entry] for entry in environment if entry in marks), None)
    return _Seen(parent=int(stat[1]), started=stat[19], part=part)


def _part(pid: int, seen: Mapping[int, _Seen]) -> str | None:
    """The nearest mark above: a process that shows a title, as Ray's do, writes it over its own."""
    while process := seen.get(pid):
        if process.part:
            return process.part
        pid = process.parent
    return None


def _kill(pid: int, process: _Seen) -> None:
    """Kill it; what has been given its number meanwhile stays."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        now = _seen(pid, {})
        if now and now.started == process.started:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
