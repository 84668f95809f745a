"""How a node agent brings ranks to life: the facts of one rank, and the fork server's client.

Imported by the fork server and by every rank, so it needs the standard library only. The other end
of the pipe is ``worker/forkserver.py``. ``worker/spawnlauncher.py`` is the other launcher, and
``worker/launchers.py`` chooses.
"""

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self

_log = logging.getLogger(__name__)

#: What every rank needs and no rank should load again: 4 s of imports and optimizer kernels, paid
#: once a node. Modules, and functions as ``module:function``, which are called.
PRELOAD = (
    *("numpy", "torch", "torch._dynamo", "httpx", "safetensors.torch"),
    "optim:load_kernels",
)
RANK_ENTRY = "worker.rank:main"

_SECRET_PREFIXES = ("RAY_", "ROADLESS_")
_SECRET_NAMES = frozenset({"DATABASE_URL"})
#: A process with threads must not fork, and OpenBLAS starts its own on import (torch has another).
_THREADLESS = {"OPENBLAS_NUM_THREADS": "1"}
_RESTART_SECONDS = (0.1, 30.0)
_STARTING_SECONDS = 30.0
_DYING_SECONDS = 5.0
_STOPPING_SECONDS = 10.0
_LOG_TAIL_BYTES = 4000

#: Folder beside those of attempts: environments of uploaded wheels.
ENVIRONMENTS = "environments"
#: How ranks come to life: from a warm process, or each with imports of its own.
LaunchMethod = Literal["fork", "spawn"]


class LaunchError(Exception):
    """Ranks cannot be started; the message carries the end of the fork server's log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelFile:
    """The uploaded wheel that a job's model comes from."""

    file_name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLaunch:
    """What a rank knows when it is born. The rest it asks the service for."""

    attempt_id: str
    job_id: str
    fence: int
    token: str = field(repr=False)  #: the attempt's; travels through pipes only
    service_url: str
    rank: int  #: 0 to world_size - 1, ordered by node
    local_rank: int  #: 0, 1, ... on this node
    world_size: int
    master_addr: str  #: where rank 0 listens for the rendezvous
    master_port: int
    threads: int  #: torch threads, at least 1
    gpu_ids: tuple[str, ...] = ()  #: empty: the rank computes on the CPU
    scratch: str  #: the attempt's own folder on this node
    data_roots: tuple[str, ...] = ()  #: folders that the job's data may lie in
    data_urls: tuple[str, ...] = ()  #: beginnings of URLs that it may be read from
    data_cache: str = "~/.roadless/data-cache"  #: where prepared data is kept on this node
    data_cache_bytes: int = 100 * 2**30
    model_roots: tuple[str, ...] = ()  #: folders that saved models may lie in
    allow_hub: bool = False  #: whether the job may fetch a model from the hub
    entry_points: tuple[str, ...] = ()  #: factories that the job may call
    method: LaunchMethod = "fork"
    wheel: WheelFile | None = None  #: needs an environment of its own, and so to be spawned

    @property
    def log_path(self) -> Path:
        """Where the rank's standard output and error go."""
        return Path(self.scratch) / f"rank-{self.rank}.log"

    @property
    def environments(self) -> Path:
        """Where this node keeps the environments of wheels."""
        return Path(self.scratch).parent / ENVIRONMENTS

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build the value from what ``to_json`` gave, after a trip through JSON."""
        lists = {name: tuple(item) for name, item in value.items() if isinstance(item, list)}
        wheel = WheelFile(**value["wheel"]) if value.get("wheel") else None
        return cls(**{**value, **lists, "wheel": wheel})


@dataclass(frozen=True, kw_only=True, slots=True)
class Exited:
    """One rank's process is gone and reaped. ``code``: negative for a signal."""

    attempt_id: str
    rank: int
    code: int


class Launcher(Protocol):
    """Starts ranks and tells, through the callback it was built with, how each one ended."""

    def launch(self, launches: Sequence[RankLaunch]) -> None:
        """Start these ranks; raise LaunchError when none of them can be asked for.

        One that cannot be started is told as an end, with its cause in its log.
        """

    def kill(self, attempt_id: str) -> None:
        """Ask for SIGKILL to all ranks of the attempt; their ends are told as usual."""

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return once ranks can be started as fast as they ever are; raise LaunchError if not."""

    def close(self) -> None:
        """End the launcher and with it every rank."""


class ForkLauncher:
    """Forks ranks from one warm, single-threaded process, which it keeps alive.

    A thread owns the fork server: it starts it, hears it, and starts the next one when it dies. The
    kernel kills ranks when their fork server dies, and the fork server when that thread dies.
    """

    def __init__(
        self,
        *,
        scratch: Path,
        on_exit: Callable[[Exited], None],
        entry: str = RANK_ENTRY,
        preload: tuple[str, ...] = PRELOAD,
    ) -> None:
        self._log_path = scratch / "forkserver.log"
        self._on_exit = on_exit
        self._command = [
            *(sys.executable, "-u", "-m", "worker.forkserver"),
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

    def wait_ready(self, timeout_seconds: float) -> None:
        """Wait until everything is imported."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_warm or self._failure, timeout_seconds)
            if not self._is_warm:
                raise LaunchError(self._failure or f"not warm after {timeout_seconds:g} s")

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
        """Write one line; a server that is gone is dealt with by the thread that owns it."""
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
        """Start a fork server and hear it to its end; return whether it ever was warm."""
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
        """The kernel is killing these ranks; say that they are gone once they are."""
        deadline = time.monotonic() + _DYING_SECONDS
        for (attempt_id, rank), pid in pids.items():
            if not wait_gone(pid, timeout_seconds=deadline - time.monotonic()):
                _log.error("rank %d of %s outlives its fork server, pid %d", rank, attempt_id, pid)
            self._on_exit(Exited(attempt_id=attempt_id, rank=rank, code=-9))


def rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` without Ray's variables and ours: ranks get no token but their own.

    Stripped before the fork server is executed, since a process's first environment stays readable
    in ``/proc`` whatever it deletes later.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(_SECRET_PREFIXES) and name not in _SECRET_NAMES
    }
    return kept | _THREADLESS


def wait_gone(pid: int, *, timeout_seconds: float) -> bool:
    """Wait until the process is dead; return whether it is. ``pid`` 0 is a process never born."""
    if pid == 0:
        return True
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return wait_pidfd(pidfd, timeout_seconds=timeout_seconds)
    finally:
        os.close(pidfd)


def wait_pidfd(pidfd: int, *, timeout_seconds: float) -> bool:
    """Wait until the process behind ``pidfd`` is dead; return whether it is."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_seconds) * 1000))


def read_tail(path: Path) -> str:
    """Return the last 4000 bytes of a log as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _close_pipes(server: subprocess.Popen[bytes]) -> None:
    for pipe in (server.stdin, server.stdout):
        if pipe is not None:
            _close_quietly(pipe)


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        _log.debug("unsent bytes to a dead fork server were dropped")
