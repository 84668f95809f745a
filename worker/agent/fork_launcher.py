"""The fork server's client: keeps one warm process alive, and asks it for ranks."""

import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
_STARTING_SECONDS = 10.0
_PING_SECONDS = 1.0
#: A fork server that is silent for so long is not asked for ranks, if there is another one.
_LATE_SECONDS = 3.0
#: One that is silent for so long is killed, and its ranks with it; while it imports, the second.
_SILENT_SECONDS = (30.0, 300.0)
_READ_BYTES = 65536
#: More than all launches that may be waiting for a fork server that does not read.
_PIPE_BYTES = 2**20
_DYING_SECONDS = 5.0
_STOPPING_SECONDS = 10.0


class ForkLauncher:
    """Forks ranks from one warm, single-threaded process, which it keeps alive.

    One thread owns the fork server: it starts it, reads its reports, and replaces it when it dies
    or hangs. The kernel kills ranks when their fork server dies, and the fork server when that
    thread dies.
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
        self._silent_seconds = 0.0  #: since it has reported or answered anything
        self._is_closed = False
        self._failure = ""  #: why the last fork server did not start, or died before it was warm
        self._pids: dict[tuple[str, int], int] = {}  #: (attempt, rank) -> pid; 0: not forked yet
        self._thread = threading.Thread(target=self._keep_alive, name="forkserver", daemon=True)
        self._thread.start()

    def launch(self, launches: Sequence[RankLaunch]) -> None:
        """Send the ranks to the fork server, which may still be warming up for the first time."""
        with self._changed:
            self._changed.wait_for(lambda: self._server or self._failure, _STARTING_SECONDS)
            if self._failure or self._server is None:
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
        """Wait until everything is imported, and the fork server answers."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready() or self._failure, timeout_seconds)
            if not self._is_ready():
                raise LaunchError(
                    self._failure or f"the fork server is not ready after {timeout_seconds:g} s"
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

    def _is_ready(self) -> bool:
        return self._is_warm and self._silent_seconds < _LATE_SECONDS

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
        try:
            server = self._start_server()
        except OSError as error:
            self._note_failure(f"expected a fork server to start, saw {error}")
            return False
        for line in self._lines(server):
            self._hear(json.loads(line))
        code = server.wait()
        with self._changed:
            was_warm, self._is_warm, self._server = self._is_warm, False, None
            lost, self._pids = self._pids, {}
        if not was_warm:
            self._note_failure(f"the fork server ended with {code}: {read_tail(self._log_path)}")
        _close_pipes(server)
        if not self._is_closed:
            _log.error("the fork server ended with %s, with %d ranks", code, len(lost))
        self._tell_lost(lost)
        return was_warm

    def _note_failure(self, text: str) -> None:
        with self._changed:
            self._failure = text
            self._changed.notify_all()

    def _start_server(self) -> subprocess.Popen[bytes]:
        self._log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._log_path.open("wb") as log:
            server = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=rank_environment(os.environ),
            )
        assert server.stdin is not None
        fcntl.fcntl(server.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with self._changed:
            self._server, self._silent_seconds = server, 0.0
            if self._is_closed:
                server.kill()
            self._changed.notify_all()
        return server

    def _lines(self, server: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """Yield what the server reports, until it is dead; kill it when it is silent for too long.

        Silence is counted in seconds waited for an answer, so that time in which this process was
        frozen itself is not.
        """
        assert server.stdout is not None
        poll, unread = select.poll(), b""
        poll.register(server.stdout, select.POLLIN)
        while True:
            if not poll.poll(_PING_SECONDS * 1000):
                self._note_silence(server)
                continue
            self._silent_seconds = 0.0
            if not (chunk := os.read(server.stdout.fileno(), _READ_BYTES)):
                return
            *lines, unread = (unread + chunk).split(b"\n")
            yield from lines

    def _note_silence(self, server: subprocess.Popen[bytes]) -> None:
        """Ask for a sign of life, and act when there has been none for too long."""
        self._silent_seconds += _PING_SECONDS
        if self._silent_seconds >= _SILENT_SECONDS[0 if self._is_warm else 1]:
            _log.error("the fork server is silent for %g s; it is killed", self._silent_seconds)
            server.kill()
        # Whoever holds the lock may be waiting for the server to read.
        if self._changed.acquire(blocking=False):
            try:
                if _can_take_more(server):
                    self._send({"ping": True})
            finally:
                self._changed.release()

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
                self._tell(Exited(attempt_id=attempt_id, rank=rank, code=code))

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
            self._tell(Exited(attempt_id=attempt_id, rank=rank, code=-9))

    def _tell(self, exited: Exited) -> None:
        try:
            self._on_exit(exited)
        except Exception:  # the thread must survive this: all ranks would die with it
            _log.exception("the agent did not accept the end of rank %d", exited.rank)


def _can_take_more(server: subprocess.Popen[bytes]) -> bool:
    """Whether a short line can be written to it without waiting."""
    assert server.stdin is not None
    poll = select.poll()
    poll.register(server.stdin, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poll.poll(0))


def _close_pipes(server: subprocess.Popen[bytes]) -> None:
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            _close_quietly(pipe)


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        _log.debug("unsent bytes to a dead fork server were dropped")
