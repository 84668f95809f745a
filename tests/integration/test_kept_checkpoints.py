"""A model that a user keeps: pinned while training goes on, exported, unpinned and deleted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from stack import wait_for_end, wait_for_step, wait_until

from roadless.service.client.client import ApiError
from roadless.service.contract.states import Phase
from roadless.worker.data.builtin.digits import Digits

SPEC = {
    "name": "kept",
    "model": {"kind": "preset", "name": "convnet", "width": 8},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
    "training": {"batch_size": 48},
    "evaluation": {"every_steps": 10, "batchnorm_batches": 2},
    "checkpoints": {"keep_last": 1, "keep_best": 0, "state_every_steps": 20},
}


def test_a_model_is_kept_exported_and_deleted(client, stack, tmp_path):
    """What was exported scores in another runtime what the curve says."""
    job_id = client.submit(SPEC).id
    wait_for_step(client, job_id, 5)
    client.evaluate(job_id)
    pinned = wait_until(lambda: next((c for c in client.checkpoints(job_id) if c.pinned), None))
    wait_for_step(client, job_id, pinned.step + 60)
    assert pinned.id in {c.id for c in client.checkpoints(job_id)}, "many were saved since"
    with pytest.raises(ApiError, match="unpin it first"):
        client.delete_checkpoint(pinned.id)
    client.stop(job_id)
    assert wait_for_end(client, job_id).phase is Phase.STOPPED

    point = next(p for p in client.eval_curve(job_id) if p.checkpoint_id == pinned.id)
    assert score(export(stack, pinned.id, tmp_path / "out")) == pytest.approx(point.loss, rel=1e-5)

    assert not client.unpin(pinned.id).pinned
    client.delete_checkpoint(pinned.id)
    (last,) = client.checkpoints(job_id, best=2)
    assert last.step == client.job(job_id).progress.step
    assert pinned.id not in {p.checkpoint_id for p in client.eval_curve(job_id)}


def export(stack, checkpoint_id: str, out: Path) -> Path:
    """``roadless checkpoint export`` as its user runs it."""
    arguments = ["checkpoint", "export", checkpoint_id, str(out), "--to", "onnx"]
    ran = subprocess.run(
        [sys.executable, "-m", "roadless.service.cli", *arguments],
        env={**os.environ, "ROADLESS_URL": stack.url, "ROADLESS_HOME": str(stack.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (name,) = json.loads(ran.stdout)["files"]
    return out / name


def score(path: Path) -> float:
    """The loss over the held-out digits, computed without a line of the model's own code."""
    data = Digits()
    batch = data.eval_batch(0, data.num_eval)
    session = onnxruntime.InferenceSession(path)
    (outputs,) = session.run(None, {"inputs": batch.inputs.numpy()})
    losses = torch.nn.functional.cross_entropy(
        torch.from_numpy(outputs).double(), batch.targets, reduction="mean"
    )
    return losses.item()
