"""One per node: starts ranks, watches them, and reports their deaths.

Runs as a detached Ray actor, created by ``worker/runner/node_agents.py``, so it outlives the runner
and reports a death to the service with the attempt's own token. This class knows nothing about Ray.
"""

import contextlib
import logging
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from roadless.service.contract.reports.cluster import AttemptEnded, RankExit
from roadless.service.contract.states import Reason
from roadless.worker.agent.launcher import Exited, Launcher, LaunchError
from roadless.worker.agent.movement import Movements
from roadless.worker.api import ApiError, AttemptApi
from roadless.worker.processes import read_tail
from roadless.worker.rank_launch import ENVIRONMENTS, RankLaunch
from roadless.worker.retry import call_with_retry

_log = logging.getLogger(__name__)

#: Attempts remembered as over, so that a late launch does not revive one.
_MAX_OVER = 10_000
#: Folders of ended attempts that are kept for their logs.
_MAX_FOLDERS = 50
_REPORT_FOR_SECONDS = 3600.0
_KILL_SECONDS = 10.0


class LauncherFactory(Protocol):
    """Builds the launcher that reports every exit to the agent."""

    def __call__(self, *, scratch: Path, on_exit: Callable[[Exited], None]) -> Launcher:
        """Build it; ``scratch``: an existing folder on this node."""


@dataclass(slots=True)
class _Running:
    """An attempt with live ranks here. Guarded by the agent's lock."""

    launches: dict[int, RankLaunch]
    live: set[int]
    is_ending: bool = False  #: killed, or a death was seen: later exits are not news


@dataclass(slots=True)
class _Book:
    running: dict[str, _Running] = field(default_factory=dict)
    over: dict[str, None] = field(default_factory=dict)  #: oldest first

    def close(self, attempt_id: str) -> None:
        """Remember not to start the attempt here again."""
        self.over[attempt_id] = None
        while len(self.over) > _MAX_OVER:
            del self.over[next(iter(self.over))]


class NodeAgent:
    """Owns the ranks of one node. Its methods may be called from any thread."""

    def __init__(self, *, scratch: str, make_launcher: LauncherFactory) -> None:
        self._scratch = Path(scratch).expanduser()
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._book = _Book()
        self._changed = threading.Condition()
        self._movements = Movements()
        self._launcher = make_launcher(scratch=self._scratch, on_exit=self._see_exit)

    def ready(self, timeout_seconds: float = 60.0) -> None:
        """Return once ranks can be forked without a cold import; raise LaunchError otherwise."""
        self._launcher.wait_ready(timeout_seconds)

    def launch(self, attempt_id: str, launches: Sequence[RankLaunch]) -> None:
        """Start these ranks of an attempt; their ``scratch`` is relative to this node's.

        Does nothing for an attempt that was launched or killed here before, so a repeated or late
        call starts nothing. Raises LaunchError when no rank was started.
        """
        placed = {
            launch.rank: replace(launch, scratch=str(self._scratch / launch.scratch))
            for launch in launches
        }
        with self._changed:
            if attempt_id in self._book.running or attempt_id in self._book.over:
                return
            _prune(self._scratch, keep=set(self._book.running))
            self._book.running[attempt_id] = _Running(launches=placed, live=set(placed))
        try:
            self._launcher.launch(list(placed.values()))
        except LaunchError:
            with self._changed:
                del self._book.running[attempt_id]
            raise

    def kill(self, attempt_id: str) -> bool:
        """Kill the attempt's ranks, wait, and never start it again; return whether none is left."""
        with self._changed:
            self._book.close(attempt_id)
            running = self._book.running.get(attempt_id)
            if running is None:
                return True
            running.is_ending = True
        self._launcher.kill(attempt_id)
        with self._changed:
            return self._changed.wait_for(
                lambda: attempt_id not in self._book.running, _KILL_SECONDS
            )

    def attempts(self) -> dict[str, float]:
        """Return the attempts with live ranks here, and for how many seconds none has moved.

        Ranks move when they, or what they have started, use processor time; and when launched.
        """
        with self._changed:
            running = list(self._book.running)
        pids = self._launcher.pids()
        return self._movements.still_seconds({key: pids.get(key, []) for key in running})

    def free_port(self) -> int:
        """Return a port that is free at this moment."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
            return port

    def close(self) -> None:
        """End the launcher, and every rank with it."""
        self._launcher.close()

    def _see_exit(self, exited: Exited) -> None:
        with self._changed:
            running = self._book.running.get(exited.attempt_id)
            if running is None:
                return
            running.live.discard(exited.rank)
            is_news = exited.code != 0 and not running.is_ending
            running.is_ending = running.is_ending or is_news
            if not running.live:
                del self._book.running[exited.attempt_id]
                self._book.close(exited.attempt_id)
            self._changed.notify_all()
        if is_news:
            self._launcher.kill(exited.attempt_id)
            self._report_death(running.launches[exited.rank], code=exited.code)

    def _report_death(self, launch: RankLaunch, *, code: int) -> None:
        """Tell the service from another thread: it may be away for a long time."""
        message = f"rank {launch.rank} {_how_it_ended(code)}\n{read_tail(launch.log_path)}"
        ended = AttemptEnded(
            reason=Reason.RANK_DIED,
            message=message.strip(),
            exits=[RankExit(rank=launch.rank, code=code)],
        )
        threading.Thread(
            target=_tell, args=(launch, ended), name=f"death-{launch.attempt_id}", daemon=True
        ).start()


def _tell(launch: RankLaunch, ended: AttemptEnded) -> None:
    with AttemptApi(launch.service_url, attempt_id=launch.attempt_id, token=launch.token) as api:
        try:
            call_with_retry(lambda: api.ended(ended), seconds=_REPORT_FOR_SECONDS)
        except ApiError as error:
            _log.warning("the service did not accept the end of %s: %s", launch.attempt_id, error)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _prune(scratch: Path, *, keep: set[str]) -> None:
    """Remove all but the newest folders of attempts that have ended."""
    keep = keep | {ENVIRONMENTS}
    folders = [path for path in scratch.iterdir() if path.is_dir() and path.name not in keep]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in folders[_MAX_FOLDERS:]:
        shutil.rmtree(folder, ignore_errors=True)
