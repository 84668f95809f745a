"""The ranks that one process started: killed with all that they leave behind, reaped promptly.

Used by the fork server and the spawn launcher, from a single thread in each.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from roadless.worker.agent.launcher import Exited
from roadless.worker.rank_launch import RankLaunch

#: A killed process may still have to release GPU memory.
_GROUP_SECONDS = 5.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True, kw_only=True, slots=True)
class _Child:
    attempt_id: str
    rank: int
    pid: int
    pidfd: int  #: readable once the process is dead
    wait: Callable[[], int]  #: reaps it and returns its exit code


class Children:
    """Live ranks, keyed by a pidfd that becomes readable when the rank exits."""

    def __init__(self) -> None:
        self._by_pidfd: dict[int, _Child] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._by_pidfd))

    def pids(self) -> dict[str, list[int]]:
        """Return the processes of live ranks, by attempt; may be called from any thread."""
        found: dict[str, list[int]] = {}
        for child in list(self._by_pidfd.values()):
            found.setdefault(child.attempt_id, []).append(child.pid)
        return found

    def add(self, launch: RankLaunch, *, pid: int, wait: Callable[[], int]) -> int:
        """Watch a child of this process, and return its pidfd."""
        pidfd = os.pidfd_open(pid)
        self._by_pidfd[pidfd] = _Child(
            attempt_id=launch.attempt_id, rank=launch.rank, pid=pid, pidfd=pidfd, wait=wait
        )
        return pidfd

    def kill(self, attempt_id: str) -> None:
        """Kill the attempt's ranks and everything they started."""
        for child in self._by_pidfd.values():
            if child.attempt_id == attempt_id:
                _kill(child)

    def kill_all(self) -> None:
        """Kill every rank and everything it started."""
        for child in self._by_pidfd.values():
            _kill(child)

    def reap(self, pidfd: int) -> Exited:
        """Reap a dead rank, and return how it ended."""
        child = self._by_pidfd.pop(pidfd)
        # A dead group leader keeps its pid, and so its group, until it is reaped: this is the last
        # chance to kill what it left behind.
        _kill(child)
        code = child.wait()
        _wait_for_group(child.pid)
        os.close(pidfd)
        return Exited(attempt_id=child.attempt_id, rank=child.rank, code=code)


def _wait_for_group(pgid: int) -> None:
    """Wait until the rank's orphans that this process has adopted are gone."""
    deadline = time.monotonic() + _GROUP_SECONDS
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if not os.waitpid(-pgid, os.WNOHANG)[0]:
                time.sleep(_POLL_SECONDS)


def _kill(child: _Child) -> None:
    """Kill the rank and its group; both, since a new process may not have made its group yet."""
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
