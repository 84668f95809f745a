"""``roadless up`` as a user starts it, with real jobs: what it opens, what it keeps, how it ends.

One stack for the whole file, in the order of the tests; the last ones end it.
"""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from stack import free_port, rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.cli.home_lock import LOCK_FILE
from roadless.service.client.client import Client
from roadless.service.client.datasets import Datasets
from roadless.service.contract.states import Phase

#: What the operator's shell holds, and no process but the service may see.
SECRETS = {
    "ROADLESS_SECRETS_KEY": "bWFya2VyLW9mLXRoZS1zZWNyZXRzLWtleS0zMi1ieXQ=",
    "ROADLESS_TOKEN": "marker-of-the-user",
    "ROADLESS_RUNNER_TOKEN": "marker-of-another-runner",
    "AWS_SECRET_ACCESS_KEY": "marker-of-the-bucket",
    "PGPASSWORD": "marker-of-the-database",
    "SOME_PASSWORD": "marker-of-something-else",
}


@dataclass
class Up:
    """A running ``roadless up``."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def client(self) -> Client:
        url = f"http://127.0.0.1:{self.port}"
        return Client(url, (self.home / "user.token").read_text().strip())

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, words: str) -> psutil.Process:
        """The process with these words in its command line."""
        found: psutil.Process = wait_until(lambda: self._with(words), seconds=30)
        return found

    def _with(self, words: str) -> psutil.Process | None:
        return next((p for p in self.tree() if words in " ".join(command_of(p))), None)


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def begin(home: Path, port: int) -> Up:
    output = home.parent / "output"
    command = [sys.executable, "-m", "roadless.service.cli", "up", "--home", str(home)]
    with output.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--num-cpus", "3"],
            env={**os.environ, **SECRETS},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    said_before = output.read_bytes().count(b"is up at")

    def is_up() -> bool:
        assert process.poll() is None, output.read_text()
        return output.read_bytes().count(b"is up at") > said_before

    wait_until(is_up)
    return Up(home, port, process, output)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = begin(tmp_path_factory.mktemp("up") / "home", free_port())
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.process.wait(60)


def spec(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"kind": "preset", "name": "convnet", "width": 16},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
        "training": {"batch_size": 64},
        "evaluation": {"every_steps": 1000},
        "checkpoints": {"state_every_steps": 50},
        **changes,
    }


@pytest.fixture(scope="module")
def job(up: Up) -> str:
    """A job of two ranks, without an end."""
    job_id = up.client.submit(spec("two", parallelism={"num_workers": 2}, budget=None)).id
    wait_for_step(up.client, job_id, 60)
    return job_id


def ranks(up: Up, job: str) -> set[int]:
    attempt = up.client.job(job).attempt
    assert attempt is not None
    pids = rank_pids(attempt.id)
    assert len(pids) == 2
    return set(pids)


def fence(up: Up, job: str) -> int:
    attempt = up.client.job(job).attempt
    assert attempt is not None
    return attempt.fence


def test_everything_listens_on_loopback_alone(up: Up, job: str) -> None:
    pids = {process.pid for process in up.tree()}
    assert ranks(up, job) <= pids
    open_to_others = [
        (process.name(), connection.laddr)
        for process in up.tree()
        for connection in process.net_connections()
        if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
        if connection.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")
    ]
    assert open_to_others == []


def test_no_secret_of_the_operator_is_in_what_trains(up: Up, job: str) -> None:
    service = up.find("roadless.service.main")
    assert "marker-of-the-bucket" in (Path(f"/proc/{service.pid}/environ").read_text())
    others = [process.pid for process in up.tree() if process.pid != service.pid]
    assert ranks(up, job) <= set(others)
    for pid in others:
        shown = Path(f"/proc/{pid}/environ").read_text(errors="replace")
        leaked = [name for name, value in SECRETS.items() if f"{name}=" in shown or value in shown]
        assert leaked == [], f"{leaked} in {command_of(psutil.Process(pid))}"


def test_the_home_after_a_run_is_its_users_alone(up: Up, job: str) -> None:
    text = up.home.parent / "words.txt"
    text.write_text("here is a line of words\n" * 400)
    with up.client as client:
        datasets = Datasets(client)
        dataset = datasets.create("words", format="text")
        datasets.upload(dataset.id, text, on_progress=lambda num_bytes: None)
        datasets.seal(dataset.id)
        words = client.submit(
            spec(
                "words",
                model={"kind": "preset", "name": "gpt", "layers": 1, "width": 32, "heads": 2},
                data={"kind": "dataset", "dataset_id": dataset.id},
                task="causal_lm",
                budget={"max_steps": 5},
            )
        )
        ended = wait_for_end(client, words.id)
    assert ended.phase is Phase.SUCCEEDED, ended.message
    folders = {path.name for path in up.home.iterdir() if path.is_dir()}
    assert folders >= {"blobs", "data-cache", "datasets", "logs", "scratch"}
    open_to_others = {
        str(path.relative_to(up.home)): oct(mode)
        for path in up.home.rglob("*")
        if (mode := _mode(path)) and mode != (0o700 if path.is_dir() else 0o600)
    }
    assert open_to_others == {}
    assert _mode(up.home) == 0o700


def _mode(path: Path) -> int:
    """0 for what has gone meanwhile."""
    try:
        return stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        return 0


def test_a_dead_part_of_ray_is_replaced_and_jobs_go_on(up: Up, job: str) -> None:
    service = up.find("roadless.service.main").pid
    old = [process for process in up.tree() if process.pid != service]
    assert {process.pid for process in old} >= ranks(up, job)
    before = fence(up, job)
    up.find("raylet/raylet").kill()
    wait_until(lambda: _resumed(up, job, before))
    assert [process for process in old if _is_alive(process)] == []
    assert up.find("roadless.service.main").pid == service


def _resumed(up: Up, job_id: str, before: int) -> bool:
    """Whether a later attempt trains, and began at a training state."""
    job = up.client.job(job_id)
    assert job.phase is not Phase.FAILED, job.message
    if job.attempt is None or job.attempt.fence <= before:
        return False
    return job.phase is Phase.RUNNING and (job.attempt.resumed_step or 0) > 0


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_a_second_one_is_told_who_has_the_home(up: Up) -> None:
    command = [sys.executable, "-m", "roadless.service.cli", "up", "--home", str(up.home)]
    for port in (up.port, 0):
        second = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True)
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert f"process {up.process.pid} at http://127.0.0.1:{up.port}" in second.stderr


def test_what_a_killed_one_leaves_ends_and_the_next_goes_on(up: Up, job: str) -> None:
    """Killed along with the head's process, so that nobody is left to end Ray in order."""
    old, before = up.tree(), fence(up, job)
    head = up.find("roadless.worker.head")
    up.process.kill()
    head.kill()
    up.process.wait()
    up.process = begin(up.home, up.port).process
    assert [process for process in old if _is_alive(process)] == []
    wait_until(lambda: _resumed(up, job, before))


def test_a_closed_terminal_leaves_nothing(up: Up, job: str) -> None:
    old = up.tree()
    assert {p.pid for p in old} >= ranks(up, job)
    up.process.send_signal(signal.SIGHUP)
    assert up.process.wait(60) == 0
    assert [p for p in old if _is_alive(p)] == []
    assert (up.home / LOCK_FILE).read_text() == ""
