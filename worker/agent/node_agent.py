"""Starts ranks on one node, watches them, and reports their deaths.

Runs as a detached Ray actor, created by ``worker/runner/node_agents.py``, so it outlives the runner
and reports a death to the service with the attempt's own token. This class knows nothing about Ray.
A node may have a second agent, on standby: both share the scratch folder, and through its claims
(``worker/agent/claims.py``) each sees and kills the ranks of the other.
"""

import contextlib
import logging
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from roadless.service.contract.reports.cluster import AttemptEnded, RankExit
from roadless.service.contract.states import Reason
from roadless.worker.agent import claims
from roadless.worker.agent.launcher import Exited, Launcher, LaunchError
from roadless.worker.agent.movement import Movements
from roadless.worker.api import ApiError, AttemptApi
from roadless.worker.processes import read_tail
from roadless.worker.rank_launch import CLAIMS, ENVIRONMENTS, RankLaunch
from roadless.worker.retry import call_with_retry

_log = logging.getLogger(__name__)

#: Attempts remembered as over, so that a late launch does not revive one.
_MAX_OVER = 10_000
#: Folders of ended attempts that are kept for their logs.
_MAX_FOLDERS = 50
#: Nodes, past ones mostly, whose claims are kept in a scratch folder: each start of Ray makes one.
_MAX_NODES = 16
_REPORT_FOR_SECONDS = 3600.0
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.005


class LauncherFactory(Protocol):
    """Builds the launcher that reports every exit to the agent."""

    def __call__(self, *, scratch: Path, on_exit: Callable[[Exited], None]) -> Launcher:
        """Build it; ``scratch``: a folder on this node, made when it is needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """A node as one of its agents sees it."""

    is_warm: bool  #: whether ranks can be started at full speed
    still_seconds: dict[str, float]  #: attempts with live ranks: how long none has moved


@dataclass(frozen=True, kw_only=True, slots=True)
class Killed:
    """How far a kill has come. ``is_gone``: no rank of the attempt lives on this node."""

    is_gone: bool
    is_barred: bool  #: and none can begin here any more, whichever agent is asked


@dataclass(slots=True)
class _Running:
    """An attempt with live ranks here. Guarded by the agent's lock."""

    launches: dict[int, RankLaunch]
    live: set[int]
    claim: int  #: a file descriptor
    is_ending: bool = False  #: killed, or a death was seen: later exits are not news


@dataclass(slots=True)
class _Book:
    running: dict[str, _Running] = field(default_factory=dict)
    over: dict[str, None] = field(default_factory=dict)  #: oldest first

    def end(self, attempt_id: str) -> None:
        """Forget the attempt's ranks, and give up the claim to it."""
        claims.give_up(self.running.pop(attempt_id).claim)

    def close(self, attempt_id: str) -> None:
        """Remember not to start the attempt here again."""
        self.over[attempt_id] = None
        while len(self.over) > _MAX_OVER:
            del self.over[next(iter(self.over))]


class NodeAgent:
    """Owns the ranks of one node. Its methods may be called from any thread."""

    def __init__(self, *, node_id: str, scratch: str, make_launcher: LauncherFactory) -> None:
        self._scratch = Path(scratch).expanduser()
        self._claims = self._scratch / CLAIMS / node_id
        self._book = _Book()
        self._changed = threading.Condition()
        self._movements = Movements()
        self._launcher = make_launcher(scratch=self._scratch, on_exit=self._see_exit)

    def ready(self, timeout_seconds: float = 60.0) -> None:
        """Return once ranks can be forked without a cold import; raise LaunchError otherwise."""
        self._launcher.wait_ready(timeout_seconds)

    def launch(self, attempt_id: str, launches: Sequence[RankLaunch]) -> None:
        """Start these ranks of an attempt; their ``scratch`` is relative to this node's.

        Does nothing for an attempt that lives here or was killed here before, so a repeated or late
        call starts nothing. Raises LaunchError when no rank was started.
        """
        placed = {
            launch.rank: replace(
                launch,
                scratch=str(self._scratch / launch.scratch),
                claims=str(self._claims / attempt_id),
            )
            for launch in launches
        }
        self._prune()
        with self._changed:
            if attempt_id in self._book.running or attempt_id in self._book.over:
                return
            if (claim := self._claim(attempt_id, placed)) is None:
                return
            running = _Running(launches=placed, live=set(placed), claim=claim)
            self._book.running[attempt_id] = running
        try:
            self._launcher.launch(list(placed.values()))
        except LaunchError:
            with self._changed:
                self._book.end(attempt_id)
            raise

    def stand_by(self, attempt_id: str, launches: Sequence[RankLaunch]) -> None:
        """Report the attempt's end if another agent of this node has started it, and dies."""
        with self._changed:
            if attempt_id in self._book.running:
                return
        threading.Thread(
            target=self._report_orphans,
            args=(attempt_id, launches),
            name=f"standby-{attempt_id}",
            daemon=True,
        ).start()

    def kill(self, attempt_id: str) -> Killed:
        """Kill the attempt's ranks on this node, wait, and never start it again."""
        deadline = time.monotonic() + _KILL_SECONDS
        with self._changed:
            self._book.close(attempt_id)
            if (running := self._book.running.get(attempt_id)) is not None:
                running.is_ending = True
        is_barred = self._bar(attempt_id)
        self._launcher.kill(attempt_id)
        with self._changed:
            is_gone = self._changed.wait_for(
                lambda: attempt_id not in self._book.running, _KILL_SECONDS
            )
        is_gone = is_gone and _end(self._claims / attempt_id, deadline=deadline)
        if is_gone and is_barred:
            claims.clear(self._claims / attempt_id)
        return Killed(is_gone=is_gone, is_barred=is_barred)

    def state(self) -> NodeState:
        """Return what this agent sees of its node."""
        return NodeState(is_warm=self._is_warm(), still_seconds=self.attempts())

    def attempts(self) -> dict[str, float]:
        """Return the attempts with live ranks here, and for how many seconds none has moved.

        Ranks move when they, or what they have started, use processor time; and when launched.
        Those of another agent of this node count too.
        """
        with self._changed:
            running = list(self._book.running)
        pids = self._launcher.pids()
        found = {key: pids.get(key, []) for key in running}
        for folder in _folders(self._claims, but={claims.OVER, *found}):
            if claims.is_live(folder):
                found[folder.name] = claims.live_pids(folder)
        return self._movements.still_seconds(found)

    def free_port(self) -> int:
        """Return a port that is free at this moment."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
            return port

    def close(self) -> None:
        """End the launcher, and every rank with it."""
        self._launcher.close()

    def _claim(self, attempt_id: str, ranks: Iterable[int]) -> int | None:
        """Claim the attempt; None: another agent of this node has it, or it is over here."""
        folder = self._claims / attempt_id
        try:
            claim = claims.claim_attempt(folder)
        except claims.NotClaimed:
            return None
        except OSError as error:
            raise LaunchError(f"expected room for {folder}, saw {error}") from error
        if claims.is_over(folder):
            claims.give_up(claim)
            return None
        if claims.have_begun(folder, ranks):  # under an agent that has died since
            claims.give_up(claim)
            raise LaunchError(
                f"expected ranks that have not begun yet, saw that those of {attempt_id} have been "
                "started on this node before"
            )
        return claim

    def _bar(self, attempt_id: str) -> bool:
        """Keep other agents from starting the attempt; return whether that is certain."""
        try:
            claims.mark_over(self._claims / attempt_id)
        except OSError as error:
            _log.warning("cannot note the end of %s: %s", attempt_id, error)
            return False
        return True

    def _is_warm(self) -> bool:
        try:
            self._launcher.wait_ready(0.0)
        except LaunchError:
            return False
        return True

    def _prune(self) -> None:
        """Remove all but the newest folders of attempts that have ended, and old marks of ends."""
        live = {ENVIRONMENTS, CLAIMS, *self.attempts()}
        for folder in _oldest(_folders(self._scratch, but=live), beyond=_MAX_FOLDERS):
            shutil.rmtree(folder, ignore_errors=True)
        for node in _oldest(
            _folders(self._claims.parent, but={self._claims.name}), beyond=_MAX_NODES
        ):
            if not any(map(claims.is_live, node.iterdir())):
                shutil.rmtree(node, ignore_errors=True)
        for mark in _oldest((self._claims / claims.OVER).glob("*"), beyond=_MAX_OVER):
            with contextlib.suppress(OSError):
                mark.unlink()

    def _see_exit(self, exited: Exited) -> None:
        with self._changed:
            running = self._book.running.get(exited.attempt_id)
            if running is None:
                return
            running.live.discard(exited.rank)
            is_news = exited.code != 0 and not running.is_ending
            running.is_ending = running.is_ending or is_news
            if not running.live:
                self._book.end(exited.attempt_id)
                self._book.close(exited.attempt_id)
            self._changed.notify_all()
        if is_news:
            self._launcher.kill(exited.attempt_id)
            self._report_death(running.launches[exited.rank], code=exited.code)

    def _report_orphans(self, attempt_id: str, launches: Sequence[RankLaunch]) -> None:
        folder = self._claims / attempt_id
        if not claims.wait_until_dead(folder):
            return
        # The kernel is killing the ranks: a next attempt should not meet them.
        _end(folder, deadline=time.monotonic() + _KILL_SECONDS)
        ended = AttemptEnded(
            reason=Reason.RANK_DIED,
            message="the node agent that had started its ranks died, and they with it",
            exits=[RankExit(rank=launch.rank, code=-signal.SIGKILL) for launch in launches],
        )
        _tell(launches[0], ended)

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


def _end(folder: Path, *, deadline: float) -> bool:
    """Kill what other agents have started of an attempt; return whether nothing of it lives."""
    claims.kill(folder)
    while claims.live_pids(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _folders(parent: Path, *, but: Collection[str]) -> list[Path]:
    """Return the folders in ``parent``, which may not exist, apart from those of these names."""
    return [path for path in parent.glob("*/") if path.name not in but]


def _oldest(paths: Iterable[Path], *, beyond: int) -> list[Path]:
    """Return all but the ``beyond`` changed last; what has vanished meanwhile counts as old."""
    return sorted(paths, key=_changed_at, reverse=True)[beyond:]


def _changed_at(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
