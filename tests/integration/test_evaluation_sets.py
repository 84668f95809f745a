"""A further set and a custom metric on the whole system, and what ranks say of their machines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from stack import wait_for_end

from roadless.service.client.client import Client
from roadless.service.contract.states import Phase

#: A function that every node has, and one number a sample: of the outputs it makes the loss itself.
CROSS_ENTROPY = "torch.nn.functional:cross_entropy"
SHIFTED = {
    "kind": "builtin",
    "name": "synthetic",
    "generator": "classification",
    "num_train": 10,
    "num_eval": 70,
    "input_shape": [1, 8, 8],
}
SPEC: dict[str, Any] = {
    "name": "two sets",
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
    "training": {"batch_size": 48},
    "parallelism": {"num_workers": 2},
    "evaluation": {
        "every_steps": 5,
        "batch_size": 50,
        "sets": [{"name": "shifted", "data": SHIFTED}],
        "metrics": [
            {
                "name": "nats",
                "entry_point": CROSS_ENTROPY,
                "arguments": {"reduction": "none"},
            }
        ],
    },
    "budget": {
        "max_steps": 1000,
        "until": {"metric": "eval.shifted.nats", "value": 1e9, "mode": "min"},
    },
}


def test_a_goal_about_a_further_set_ends_a_job_whose_download_scores_the_same(
    client: Client, tmp_path: Path
) -> None:
    job_id = client.submit(SPEC).id
    job = wait_for_end(client, job_id)
    assert (job.phase, job.reason, job.progress.step) == (Phase.SUCCEEDED, "goal_reached", 5)
    point = client.eval_curve(job_id)[-1]
    assert point.metrics["eval.nats"] == point.loss
    assert point.metrics["eval.shifted.nats"] == point.metrics["eval.shifted.loss"] != point.loss
    assert point.checkpoint_id is not None
    receipt = client.download(point.checkpoint_id, tmp_path).evaluation
    assert receipt is not None
    assert receipt.sets["shifted"].num_examples == 70
    result = subprocess.run(
        [sys.executable, "-m", "roadless.worker.verify", str(tmp_path)],
        env={**os.environ, "ROADLESS_ALLOWED_ENTRY_POINTS": CROSS_ENTROPY},
        capture_output=True,
        check=True,
    )
    seen = json.loads(result.stdout)
    assert seen["eval.shifted.loss"] == point.metrics["eval.shifted.loss"]
    names = {summary.name for summary in client.metrics(job_id)}
    for rank in (0, 1):
        assert {f"rank.{rank}.rss_bytes", f"rank.{rank}.cpu_percent"} <= names
        memory = client.metric(job_id, f"rank.{rank}.rss_bytes")
        assert memory.x[0] == 1
        assert memory.last[0] is not None
        assert memory.last[0] > 1e7


def test_a_metric_that_the_operator_does_not_allow_fails_the_job(client: Client) -> None:
    metric = {"name": "mine", "entry_point": "torch.nn.functional:nll_loss"}
    job = wait_for_end(
        client, client.submit({**SPEC, "evaluation": {"metrics": [metric]}, "budget": None}).id
    )
    assert (job.phase, job.reason) == (Phase.FAILED, "metric_forbidden")
    assert "ROADLESS_ALLOWED_ENTRY_POINTS" in job.message
