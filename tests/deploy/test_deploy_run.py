"""The compose file trains a job, run as processes of this machine; see localstack.py."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from localstack import LocalStack, wait_until

from roadless.service.client.client import Client
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Phase

JOB = {
    "name": "compose",
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
    "parallelism": {"num_workers": 2},
    "budget": {"max_steps": 30},
    "evaluation": {"every_steps": 10},
}


@pytest.fixture
def stack(database_url: str, secrets: dict[str, str], tmp_path: Path) -> Iterator[LocalStack]:
    made = LocalStack(tmp_path, variables=secrets, database_url=database_url)
    try:
        made.up()
        yield made
    finally:
        made.stop()
        left = made.kill_what_is_left()
    assert left == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_compose_file_trains_a_job_and_leaves_nothing_behind(stack: LocalStack, tmp_path: Path):
    os.kill(pid_of("roadless.worker.runner", stack), signal.SIGKILL)
    assert httpx.get(f"{stack.url}/readyz").is_success
    with Client(stack.url, (stack.home / "user.token").read_text().strip()) as client:
        job = client.wait(client.submit(JOB).id, timeout=120)
        assert job.phase == Phase.SUCCEEDED, f"{job.message}\n{stack.logs()}"
        newest = next(client.checkpoints(job.id, kind=CheckpointKind.EVAL))
        manifest = client.download(newest.id, tmp_path / "model")
        assert manifest.step == 30
        assert manifest.evaluation is not None
        assert manifest.evaluation.loss == client.eval_curve(job.id)[-1].loss
    for file in manifest.files:
        assert (tmp_path / "model" / file.name).stat().st_size == file.size


def pid_of(words: str, stack: LocalStack) -> int:
    """The process with these words in its command line; it may be about to start."""

    def found() -> list[int]:
        return [pid for pid, command in stack.processes().items() if words in command]

    wait_until(lambda: bool(found()), what=words)
    return found()[0]
