"""``roadless up`` in a home of its own, and its processes, each found below it to be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import paced_models
import psutil
from stack import free_port, wait_until

from roadless.service.client.client import ApiError, Client, Unreachable

#: How a process is recognised by its command line.
SERVICE, RUNNER, HEAD = "roadless.service.main", "roadless.worker.runner", "roadless.worker.head"
RAYLET, GCS = "raylet/raylet", "gcs_server"

START_SECONDS = 180.0
STOP_SECONDS = 90.0
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Stopped:
    """How ``up`` ended: its exit status, after how long, and which of its processes live on."""

    status: int | None
    seconds: float
    left: tuple[str, ...]


class PatientClient(Client):
    """Asks until it is answered: a service that starts again takes its time on a busy machine."""

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return super()._send(method, path, **options)
            except (Unreachable, ApiError) as error:
                is_outage = isinstance(error, Unreachable) or error.status == 503
                if not is_outage or time.monotonic() > deadline:
                    raise


class UpStack:
    """The command, started as a user starts it, with its own session and port."""

    def __init__(self, home: Path, *, num_cpus: int = 4, environ: Mapping[str, str] = {}) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.said = home.with_suffix(".log")
        self._arguments = ["--port", str(self.port), "--num-cpus", str(num_cpus)]
        self._environ = {
            **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            "PYTHONPATH": os.pathsep.join(
                [str(Path(paced_models.__file__).parent), os.environ.get("PYTHONPATH", "")]
            ).strip(os.pathsep),
            "ROADLESS_ALLOWED_ENTRY_POINTS": "paced_models:paced",
            **environ,
        }
        self.start()

    def start(self) -> float:
        """Start it and wait until it says that it is up; return the seconds that took."""
        began = time.monotonic()
        self.process = self.spawn()
        wait_until(self._is_up, seconds=START_SECONDS)
        return time.monotonic() - began

    def spawn(self, *, port: int | None = None) -> subprocess.Popen[bytes]:
        """Start the command; what it prints goes to the file ``said``, from its beginning."""
        command = [sys.executable, "-m", "roadless.service.cli", "up", "--home", str(self.home)]
        arguments = [*self._arguments] if port is None else ["--port", str(port)]
        with self.said.open("wb") as out:
            return subprocess.Popen(
                [*command, *arguments],
                env=self._environ,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.said.read_text()[-3000:]
        return "is up at" in self.said.read_text()

    def client(self) -> Client:
        return PatientClient(self.url, (self.home / "user.token").read_text().strip())

    def ask(self, path: str, *, method: str = "GET", **options: object) -> httpx.Response:
        """One request of the user, without the client's patience."""
        token = (self.home / "user.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        options.setdefault("timeout", 40)
        return httpx.request(method, f"{self.url}{path}", headers=headers, **options)  # type: ignore[arg-type]

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.HTTPError:
            return False

    # ---- processes -------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Everything below the command, and ranks, which lead sessions of their own."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def pid(self, what: str) -> int:
        """The oldest process with this in its command line."""
        return int(wait_until(lambda: self.pids(what), seconds=60)[0])

    def pids(self, what: str) -> list[int]:
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if what in " ".join(process.cmdline()):
                    found.append((process.create_time(), process.pid))
        return [pid for _, pid in sorted(found)]

    def stop(self, number: int = signal.SIGINT) -> Stopped:
        """Send the signal, wait for the end, and look at what is left of it."""
        before = self.processes()
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        seconds = time.monotonic() - began
        _, left = psutil.wait_procs(before, timeout=3)
        return Stopped(self.process.returncode, seconds, tuple(map(_shown, left)))

    def kill_all(self) -> None:
        """Whatever of it still runs, as the last thing that a drill does."""
        for process in [*self.processes(), *strays(self.home)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _shown(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.pid} {' '.join(process.cmdline())[:90]}"
    return f"{process.pid}"


def strays(home: Path) -> list[psutil.Process]:
    """Processes that live and know the home, by their command line or environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            known = [*process.cmdline(), *process.environ().values()]
            is_ours = process.pid != os.getpid() and any(str(home) in text for text in known)
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def frozen(*pids: int):  # type: ignore[no-untyped-def]
    """Processes that do nothing for as long as the block lasts."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
