"""``make demo``: the whole of Roadless on this machine, on two real jobs, over HTTP only.

Starts the Ray head, the service and a runner in a folder of its own; trains an image classifier on
two DDP ranks without any budget and stops it when it is good enough; trains a byte-level language
model; downloads what was learned and has a fresh process evaluate it again. Leaves nothing behind.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from roadless.service.client.client import Client
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.resources import CurvePoint, Job
from roadless.service.contract.states import TERMINAL, Phase

ACCURACY_WANTED = 0.97
NATS_PER_BYTE_WANTED = 2.1
START_SECONDS = 90.0
TRAIN_SECONDS = 170.0

DIGITS: dict[str, Any] = {
    "name": "digits",
    "model": {"kind": "preset", "name": "convnet"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 50},
    "training": {"batch_size": 64, "seed": 0},
    "parallelism": {"strategy": "ddp", "num_workers": 2},
    "budget": None,
    "evaluation": {"every_steps": 25},
}
STDLIB: dict[str, Any] = {
    "name": "stdlib-bytes",
    "model": {"kind": "preset", "name": "gpt"},
    "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
    "task": "causal_lm",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.02, "warmup_steps": 50},
    "training": {"batch_size": 16, "seed": 0},
    "budget": {"max_steps": 400},
    "evaluation": {"every_steps": 50},
}

console = Console(highlight=False, soft_wrap=True)


class DemoFailed(Exception):
    """The demo did not show what it is meant to show."""


def main() -> None:
    """Run the demo; the exit status is 0 only when everything was as promised."""
    try:
        with tempfile.TemporaryDirectory(prefix="roadless-demo-") as folder:
            home = Path(folder)
            with roadless(home) as url, Client(url, _token(home)) as client:
                show(client, home)
            _require_nothing_left(home)
    except DemoFailed as failure:
        console.print(f"[red]the demo failed:[/] {failure}")
        sys.exit(1)
    console.print("[green]done:[/] everything was as promised, and no process is left")


def show(client: Client, home: Path) -> None:
    """Train both jobs, watch them live, then check what was downloaded."""
    digits, stdlib = client.submit(DIGITS), client.submit(STDLIB)
    console.print(f"\nposted two jobs: [bold]{digits.name}[/] without a budget, and {stdlib.name}")
    watch(client, [digits.id, stdlib.id], open_ended=digits.id)
    accuracy = finished_point(client, digits.id, Phase.STOPPED).metrics["eval.accuracy"] or 0.0
    loss = finished_point(client, stdlib.id, Phase.SUCCEEDED).loss or float("inf")
    console.print()
    _require(accuracy >= ACCURACY_WANTED, f"digits: accuracy at x {accuracy:.4f}", "0.97 or more")
    _require(loss <= NATS_PER_BYTE_WANTED, f"stdlib: {loss:.4f} nats per byte at x", "2.1 or less")
    for job_id in (digits.id, stdlib.id):
        verify_download(client, client.job(job_id), home)
        print_start(client.job(job_id))


# ---- watching -----------------------------------------------------------------------------------


def watch(client: Client, job_ids: list[str], *, open_ended: str) -> None:
    """Say each evaluation and change of phase; stop the open-ended job when it is good enough."""
    said: dict[str, tuple[Phase, int]] = {}
    give_up = time.monotonic() + TRAIN_SECONDS
    while any((job := client.job(job_id)).phase not in TERMINAL for job_id in job_ids):
        if time.monotonic() > give_up:
            raise DemoFailed(f"expected both jobs to end within {TRAIN_SECONDS:g} s")
        for job_id in job_ids:
            job, curve = client.job(job_id), client.eval_curve(job_id)
            _say_news(said, client, job, curve)
            if job_id == open_ended and job.phase is Phase.RUNNING and _is_good(curve):
                console.print(f"{job.name:>14}  good enough: [bold]POST /v1/jobs/{job.id}/stop[/]")
                client.stop(job_id)
        time.sleep(0.5)
    for job_id in job_ids:
        _say_news(said, client, client.job(job_id), client.eval_curve(job_id))


def line_of(client: Client, job: Job, curve: list[CurvePoint]) -> str:
    """One line: phase, step, training loss, and the model as it would be if it ended now."""
    losses = {metric.name: metric.last for metric in client.metrics(job.id)}
    train = losses.get("train.loss")
    line = f"{job.phase:10} step {job.progress.step:5}"
    line += f"  train {train:.3f}" if train is not None else ""
    if curve:
        last = curve[-1]
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in last.metrics.items())
        line += f"  |  at x after step {last.step}: loss {last.loss:.4f}  {metrics}"
    return line if job.phase is not Phase.QUEUED else f"{job.phase:10} {job.reason}"


def _say_news(
    said: dict[str, tuple[Phase, int]], client: Client, job: Job, curve: list[CurvePoint]
) -> None:
    news = (job.phase, len(curve))
    if said.get(job.id) != news:
        said[job.id] = news
        console.print(f"{job.name:>14}  {line_of(client, job, curve)}")


def _is_good(curve: list[CurvePoint]) -> bool:
    return bool(curve) and (curve[-1].metrics["eval.accuracy"] or 0.0) >= ACCURACY_WANTED


# ---- checking -----------------------------------------------------------------------------------


def finished_point(client: Client, job_id: str, phase: Phase) -> CurvePoint:
    """The last point of the curve of a job that ended as it should."""
    job = client.job(job_id)
    if job.phase is not phase:
        raise DemoFailed(f"expected {job.name} to end {phase}, saw {job.phase}: {job.message}")
    return client.eval_curve(job_id)[-1]


def verify_download(client: Client, job: Job, home: Path) -> None:
    """Download the last model over HTTP, and have a fresh process evaluate it again."""
    point = client.eval_curve(job.id)[-1]
    newest = next(iter(client.checkpoints(job.id, kind=CheckpointKind.EVAL)))
    if point.checkpoint_id != newest.id:
        raise DemoFailed(f"expected the curve's last point to have checkpoint {newest.id}")
    folder = home / "downloads" / newest.id
    client.download(newest.id, folder)
    command = [sys.executable, "-m", "roadless.worker.verify", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        raise DemoFailed(f"the fresh process failed: {result.stderr[-2000:]}")
    seen = json.loads(result.stdout)["loss"]
    _require(
        seen == point.loss,
        f"{job.name}: downloaded {newest.total_bytes / 1e6:.1f} MB, loss in a fresh process {seen}",
        f"the curve's last point, {point.loss}",
    )


def print_start(job: Job) -> None:
    """Say how long the user waited for the first stored step."""
    assert job.started_at is not None
    assert job.attempt is not None
    waited = (job.started_at - job.created_at).total_seconds()
    queued = (job.attempt.created_at - job.created_at).total_seconds()
    text = f"{waited - queued:.2f} s" + (
        f", after {queued:.1f} s in the queue" if queued > 1 else ""
    )
    console.print(f"   {job.name}: POST to first stored step {text}")


def _require(is_met: bool, seen: str, expected: str) -> None:
    if not is_met:
        raise DemoFailed(f"expected {expected}; saw {seen}")
    console.print(f"[green]ok[/] {seen}  ({expected})")


# ---- starting and stopping ----------------------------------------------------------------------


@contextmanager
def roadless(home: Path) -> Iterator[str]:
    """``roadless up`` in ``home``, stopped with everything it started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["--home", str(home), "--port", str(port), "--num-cpus", "2"]
    command = [sys.executable, "-m", "roadless.service.cli", "up", *options]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise DemoFailed(f"expected the service at {url} within {START_SECONDS:g} s")


def _token(home: Path) -> str:
    return (home / "user.token").read_text().strip()


def _require_nothing_left(home: Path) -> None:
    """No process on this machine has our folder in its command, environment or open files."""
    left = [path.name for path in Path("/proc").iterdir() if _mentions(path, str(home).encode())]
    if left and left != [str(os.getpid())]:
        raise DemoFailed(f"expected no process to be left, saw {left}")


def _mentions(process: Path, text: bytes) -> bool:
    if not process.name.isdigit():
        return False
    try:
        return text in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    main()
