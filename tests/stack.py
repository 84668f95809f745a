"""The whole system as processes of its own, so that each can be killed."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from roadless.service.client.client import Client
from roadless.service.contract.resources import Job
from roadless.service.contract.states import TERMINAL, Phase
from roadless.worker.runner.ray_cluster import Head

TIMEOUT_SECONDS = 90.0


class Stack:
    """A service, a Ray head and a runner on this machine. The service is reached on one port."""

    def __init__(self, home: Path, head: Head, *, database_url: str | None = None) -> None:
        home.mkdir()
        self.home = home
        self.url = f"http://127.0.0.1:{free_port()}"
        self._environment = {
            **os.environ,
            **head.environment,
            "ROADLESS_HOME": str(home),
            "ROADLESS_URL": self.url,
            "ROADLESS_PORT": self.url.rpartition(":")[2],
            "ROADLESS_SCRATCH": str(home / "scratch"),
            "ROADLESS_DATA_CACHE": str(home / "data-cache"),
            "ROADLESS_RUNNER_TOKEN_FILE": str(home / "runner.token"),
            "ROADLESS_RUNNER_NAME": home.name,
            "ROADLESS_DATA_ROOTS": str(home / "data"),
            "ROADLESS_GROW_SECONDS": "0.5",
            "ROADLESS_ALLOW_WHEELS": "1",
            "ROADLESS_ALLOWED_ENTRY_POINTS": "torch.nn.functional:cross_entropy,paced_models:paced",
        }
        if database_url is not None:
            self._environment["DATABASE_URL"] = database_url
        self.service = self.start_service()
        self.runner = self.start_runner()

    def start_service(self, **settings: str) -> subprocess.Popen[bytes]:
        self.service = self._start("roadless.service.main", **settings)
        wait_until(self._is_ready)
        return self.service

    def start_runner(self) -> subprocess.Popen[bytes]:
        self.runner = self._start("roadless.worker.runner")
        return self.runner

    def client(self) -> Client:
        return Client(self.url, (self.home / "user.token").read_text().strip())

    def get(self, path: str) -> httpx.Response:
        token = (self.home / "user.token").read_text().strip()
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {token}"})

    def close(self) -> None:
        for process in (self.runner, self.service):
            process.send_signal(signal.SIGTERM)
            process.wait(20)

    def _start(self, module: str, **settings: str) -> subprocess.Popen[bytes]:
        environment = {**self._environment, **settings}
        with (self.home / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdout=log, stderr=log
            )

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.TransportError:
            return False


def undisturbed_curves(
    stack: Stack, spec_of: Callable[[int], dict[str, Any]]
) -> Callable[[int], tuple[Any, ...]]:
    """Return a function to the curve of an undisturbed run of so many ranks, trained when asked."""

    @functools.cache
    def curve(num_workers: int) -> tuple[Any, ...]:
        with stack.client() as client:
            job_id = client.submit(spec_of(num_workers)).id
            assert wait_for_end(client, job_id).phase is Phase.SUCCEEDED
            return curve_of(client, job_id)

    return curve


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_true: Callable[[], Any], *, seconds: float = TIMEOUT_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := is_true()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
    return found


def wait_for_end(client: Client, job_id: str) -> Job:
    def ended() -> Job | None:
        job = client.job(job_id)
        return job if job.phase in TERMINAL else None

    job: Job = wait_until(ended)
    return job


def wait_for_step(client: Client, job_id: str, step: int) -> None:
    def reached() -> bool:
        job = client.job(job_id)
        assert job.phase not in TERMINAL, f"{job.phase}: {job.message}"
        return job.progress.step >= step

    wait_until(reached)


def curve_of(client: Client, job_id: str) -> tuple[Any, ...]:
    """Everything that makes two runs equal: steps, samples, tokens, and every float's bits.

    Not what ranks use of their machines.
    """
    metrics = []
    for summary in client.metrics(job_id):
        if summary.name.startswith("rank."):
            continue
        found = client.metric(job_id, summary.name, buckets=2000)
        assert set(found.count) == {1}
        metrics.append((summary.name, found.x, [value.hex() for value in found.last if value]))
    points = [
        (p.step, p.samples, p.tokens, p.loss.hex(), {k: v.hex() for k, v in p.metrics.items()})
        for p in client.eval_curve(job_id)
    ]
    return metrics, points


def rank_pids(attempt_id: str) -> list[int]:
    """Process ids of the attempt's ranks on this machine, rank 0 first, by the log they write.

    A rank leads its session; what it has forked itself is left out.
    """
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                log = os.readlink(process / "fd" / "1")
                is_rank = os.getsid(int(process.name)) == int(process.name)
            except OSError:
                continue
            if attempt_id in log and is_rank:
                found[log] = int(process.name)
    return [found[log] for log in sorted(found)]
