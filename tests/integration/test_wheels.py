"""A model of a user's own wheel through the whole system: uploaded, trained, verified, deleted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stack import Stack, rank_pids, wait_for_end, wait_for_step
from wheel_maker import make_wheel

from roadless.service.client.client import ApiError, Client
from roadless.service.client.wheels import Wheels
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Phase, Reason


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("dist"), requires=["torch>=2"])


def spec_with(wheel_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": "wheel",
        "model": {"kind": "entry_point", "factory": "our_models:small", "wheel": wheel_id},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.02, "warmup_steps": 5},
        "training": {"batch_size": 32},
        "parallelism": {"num_workers": 2},
        "budget": {"max_steps": 40},
        "evaluation": {"every_steps": 20},
        **fields,
    }


def test_a_model_of_a_wheel_is_trained_by_two_ranks_and_verified_elsewhere(
    stack: Stack, client: Client, wheel: Path, tmp_path: Path
) -> None:
    """The operator lists no entry point, and no node has the package."""
    wheels = Wheels(client)
    uploaded = wheels.upload(wheel)
    spec = spec_with(uploaded.id, budget={"max_steps": 400}, evaluation={"every_steps": 200})
    job_id = client.submit(spec).id
    wait_for_step(client, job_id, 1)
    attempt = client.job(job_id).attempt
    assert attempt is not None
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in rank_pids(attempt.id)]
    assert len(commands) == 2
    assert all(f"/environments/{uploaded.sha256}" in command for command in commands)
    with pytest.raises(ApiError, match="expected no unfinished job"):
        wheels.delete(uploaded.id)
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED, job.message

    newest = next(client.checkpoints(job_id, kind=CheckpointKind.EVAL))
    client.download(newest.id, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "roadless.worker.verify", tmp_path / "model", "--wheel", wheel],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ROADLESS_SCRATCH": str(tmp_path / "scratch")},
    )
    assert json.loads(done.stdout)["equal"] is True, done.stderr

    extended = client.extend(job_id)
    assert extended.phase is Phase.QUEUED
    wait_for_step(client, job_id, 420)
    client.stop(job_id)
    assert wait_for_end(client, job_id).phase is Phase.STOPPED
    wheels.delete(uploaded.id)
    with pytest.raises(ApiError, match="saw it deleted"):
        client.resume(job_id)


def test_what_a_wheel_requires_and_the_node_has_not_is_named_once(
    client: Client, tmp_path: Path
) -> None:
    requires = ["torch>=2", "no-such-package>=3", "numpy>=99", 'other; extra == "dev"']
    wheel = make_wheel(tmp_path, name="needy", requires=requires)
    job = client.submit(spec_with(Wheels(client).upload(wheel).id))
    ended = wait_for_end(client, job.id)
    assert (ended.phase, ended.reason) == (Phase.FAILED, Reason.MODEL_INVALID)
    assert "no no-such-package>=3" in (ended.message or "")
    assert "for numpy>=99" in (ended.message or "")
    assert "other" not in (ended.message or "")
    assert ended.attempt is not None
    assert ended.attempt.fence == 1
