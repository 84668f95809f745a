"""Jobs whose ranks share the model: the same promises as for replicas (P5, P6)."""

import json
import os
import signal
import subprocess
import sys

import pytest
from stack import curve_of, rank_pids, wait_for_end, wait_for_step

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Phase


def spec_of(**changes):
    return {
        "name": "shards",
        "model": {"kind": "preset", "name": "gpt", "layers": 2, "width": 64, "heads": 2},
        "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
        "task": "causal_lm",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 10},
        "training": {"batch_size": 8, "seed": 3, "max_grad_norm": 1.0},
        "parallelism": {"num_workers": 2, "strategy": "fsdp"},
        "budget": {"max_steps": 90},
        "evaluation": {"every_steps": 30, "batch_size": 32, "max_batches": 3},
        "checkpoints": {"state_every_steps": 20},
        **changes,
    }


def test_a_killed_rank_of_shards_leaves_no_trace_in_the_curve(client):
    reference = client.submit(spec_of()).id
    assert wait_for_end(client, reference).phase is Phase.SUCCEEDED
    job_id = client.submit(spec_of()).id
    wait_for_step(client, job_id, 45)
    os.kill(rank_pids(client.job(job_id).attempt.id)[-1], signal.SIGKILL)
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED
    assert job.attempt.fence == 2
    assert job.attempt.resumed_step > 0
    assert curve_of(client, job_id) == curve_of(client, reference)
    states = [c for c in client.checkpoints(job_id) if c.kind is CheckpointKind.RESUME]
    files = [file.name for file in client.checkpoint(states[0].id).files]
    assert sorted(files) == ["state-00001.safetensors", "state.json", "state.safetensors"]


@pytest.mark.parametrize("precision", ["amp_bf16", "bf16"])
def test_a_downloaded_model_of_shards_scores_what_the_curve_says(client, tmp_path, precision):
    training = {**spec_of()["training"], "precision": precision}
    job_id = client.submit(spec_of(training=training, budget={"max_steps": 15})).id
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED, job.message
    point = client.eval_curve(job_id)[-1]
    client.download(point.checkpoint_id, tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "roadless.worker.verify", str(tmp_path)],
        capture_output=True,
        check=True,
    )
    assert json.loads(result.stdout)["loss"] == point.loss
