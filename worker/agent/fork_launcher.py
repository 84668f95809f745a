"""The fork server's client: keeps one warm process alive, and asks it for ranks."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from roadless.worker.agent.launcher import (
    PRELOAD,
    RANK_ENTRY,
    Exited,
    LaunchError,
    rank_environment,
)
from roadless.worker.processes import read_tail, wait_gone
from roadless.worker.rank_launch import RankLaunch

_log = logging.getLogger(__name__)

_RESTART_SECONDS = (0.1, 30.0)
_STARTING_SECONDS = 30.0
_DYING_SECONDS = 5.0
_STOPPING_SECONDS = 10.0


class ForkLauncher:
    """Forks ranks from one warm, single-threaded process, which it keeps alive.

    One thread owns the fork server: it starts it, reads its reports, and replaces it when it dies.
    The kernel kills ranks when their fork server dies, and the fork server when that thread dies.
    """

    def __init__(
        self,
        *,
        scratch: Path,
        on_exit: Callable[[Exited], None],
        entry: str = RANK_ENTRY,
        preload: tuple[str, ...] = PRELOAD,
        log_name: str = "forkserver.log",
    ) -> None:
        self._log_path = scratch / log_name
        self._on_exit = on_exit
        self._command = [
            *(sys.executable, "-u", "-m", "roadless.worker.agent.fork_server"),
            *("--entry", entry, "--preload", ",".join(preload), "--parent", str(os.getpid())),
        ]
        self._changed = threading.Condition()
        self._server: subprocess.Popen[bytes] | None = None
        self._is_warm = False
        self._is_closed = False
        self._failure = ""  #: why the last fork server died before it was warm
        self._pids: dict[tuple[str, int], int] = {}  #: (attempt, rank) -> pid; 0: not forked yet
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread = threading.Thread(target=self._keep_alive, name="forkserver", daemon=True)
        self._thread.start()

    def launch(self, launches: Sequence[RankLaunch]) -> None:
        """Send the ranks to the fork server, which may still be warming up."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._server is not None, _STARTING_SECONDS):
                raise LaunchError(self._failure or "the fork server was not started in time")
            for launch in launches:
                self._pids[(launch.attempt_id, launch.rank)] = 0
                self._send({"launch": launch.to_json()})

    def kill(self, attempt_id: str) -> None:
        """Ask the fork server to kill the attempt's ranks."""
        with self._changed:
            self._send({"kill": attempt_id})

    def pids(self) -> dict[str, list[int]]:
        """Return the processes of ranks that have been forked, by attempt."""
        found: dict[str, list[int]] = {}
        with self._changed:
            for (attempt_id, _), pid in self._pids.items():
                found.setdefault(attempt_id, []).extend([pid] if pid else [])
        return found

    def wait_ready(self, timeout_seconds: float) -> None:
        """Wait until everything is imported."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_warm or self._failure, timeout_seconds)
            if not self._is_warm:
                raise LaunchError(
                    self._failure or f"the fork server is not warm after {timeout_seconds:g} s"
                )

    def close(self) -> None:
        """End the fork server; the kernel kills its ranks."""
        with self._changed:
            self._is_closed = True
            if self._server is not None:
                self._server.kill()
            self._changed.notify_all()
        self._thread.join(_STOPPING_SECONDS)

    @property
    def server_pid(self) -> int | None:
        """The fork server's process id, for operators and drills."""
        return self._server.pid if self._server else None

    def _send(self, message: dict[str, Any]) -> None:
        """Write one line; if the server is gone, the thread that owns it takes care of that."""
        if self._server is None or self._server.stdin is None:
            return
        try:
            self._server.stdin.write(json.dumps(message).encode() + b"\n")
            self._server.stdin.flush()
        except BrokenPipeError:
            _log.warning("the fork server is gone; its ranks are lost")

    def _keep_alive(self) -> None:
        shortest, longest = _RESTART_SECONDS
        delay = shortest
        while not self._is_closed:
            was_warm = self._run_server()
            delay = shortest if was_warm else min(2 * delay, longest)
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, 0 if was_warm else delay)

    def _run_server(self) -> bool:
        """Start a fork server and listen until it ends; return whether it was ever warm."""
        server = self._start_server()
        assert server.stdout is not None
        for line in server.stdout:
            self._hear(json.loads(line))
        code = server.wait()
        with self._changed:
            was_warm, self._is_warm, self._server = self._is_warm, False, None
            lost, self._pids = self._pids, {}
            if not was_warm:
                self._failure = f"the fork server ended with {code}: {read_tail(self._log_path)}"
                self._changed.notify_all()
        _close_pipes(server)
        if not self._is_closed:
            _log.error("the fork server ended with %s, with %d ranks", code, len(lost))
        self._tell_lost(lost)
        return was_warm

    def _start_server(self) -> subprocess.Popen[bytes]:
        with self._log_path.open("wb") as log:
            server = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=rank_environment(os.environ),
            )
        with self._changed:
            self._server = server
            if self._is_closed:
                server.kill()
            self._changed.notify_all()
        return server

    def _hear(self, message: dict[str, Any]) -> None:
        match message:
            case {"warm": seconds, "threads": threads}:
                _log.info("the fork server is warm after %.1f s, threads: %d", seconds, threads)
                self._become_warm()
            case {"forked": pid, "attempt_id": attempt_id, "rank": rank}:
                with self._changed:
                    self._pids[(attempt_id, rank)] = pid
            case {"exited": code, "attempt_id": attempt_id, "rank": rank}:
                with self._changed:
                    self._pids.pop((attempt_id, rank), None)
                self._on_exit(Exited(attempt_id=attempt_id, rank=rank, code=code))

    def _become_warm(self) -> None:
        with self._changed:
            self._is_warm, self._failure = True, ""
            self._changed.notify_all()

    def _tell_lost(self, pids: dict[tuple[str, int], int]) -> None:
        """The kernel is killing these ranks; report each once it is gone."""
        deadline = time.monotonic() + _DYING_SECONDS
        for (attempt_id, rank), pid in pids.items():
            if not wait_gone(pid, timeout_seconds=deadline - time.monotonic()):
                _log.error("rank %d of %s outlives its fork server, pid %d", rank, attempt_id, pid)
            self._on_exit(Exited(attempt_id=attempt_id, rank=rank, code=-9))


def _close_pipes(server: subprocess.Popen[bytes]) -> None:
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            _close_quietly(pipe)


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        _log.debug("unsent bytes to a dead fork server were dropped")
