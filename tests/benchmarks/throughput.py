"""``make bench-runtime``: steps per second through the whole service, beside a bare loop.

The same model, batches and optimizer, one rank of one thread: as a job that reports every step,
evaluates and saves as often as by default; as a bare loop; and under two trainers of the field.
All of them take turns, and a ratio is the median of its rounds' own ratios.

By default evaluations are so far apart that a run as short as these has none but the first and the
last. So what the first one took is timed, and its share of a whole period between evaluations is
added to each step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from stack import Stack

from roadless.service.client.client import Client
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.states import Phase
from roadless.worker.data.build import build_data
from roadless.worker.evaluation.evaluate import num_passes
from roadless.worker.evaluation.sets import Datasets
from roadless.worker.model.build import build_model
from roadless.worker.runner.ray_cluster import start_head
from roadless.worker.training.cadence import FIRST_STEP, steps_of_share

OURS, OURS_STEP, BARE = "roadless", "roadless, a step", "bare"
PEERS = ("transformers", "lightning")
#: Of a bare loop's steps per second, at least.
LIMIT = 0.97
WARMUP_STEPS = 50

JOBS: dict[str, dict[str, Any]] = {
    "gpt": {
        "model": {"kind": "preset", "name": "gpt"},
        "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
        "task": "causal_lm",
        "training": {"batch_size": 32},
        "budget": {"max_steps": 450},
    },
    "convnet": {
        "model": {"kind": "preset", "name": "convnet"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "training": {"batch_size": 64},
        "budget": {"max_steps": 1950},
    },
}


def spec_of(name: str) -> dict[str, Any]:
    return {"name": name, "optimizer": {"name": "adamw_schedulefree", "lr": 0.01}, **JOBS[name]}


def ours(client: Client, name: str, *, period: int) -> dict[str, float]:
    """Steps per second after the warm-up: with all that a job does, and of the median step.

    ``period``: steps from one evaluation to the next.
    """
    job = client.wait(client.submit(spec_of(name)).id)
    assert job.phase is Phase.SUCCEEDED, job.message
    seconds = client.metric(job.id, "train.loss", x="wall_seconds", buckets=2000).x
    evaluation = seconds[FIRST_STEP] - seconds[FIRST_STEP - 1]  # and one step
    seconds = seconds[WARMUP_STEPS - 1 :]
    each = [later - earlier for earlier, later in pairwise(seconds)]
    return {
        OURS: 1 / (statistics.fmean(each) + evaluation / period),
        OURS_STEP: 1 / statistics.median(each),
    }


def period_of(name: str) -> int:
    """Return how many steps lie between two evaluations of the job."""
    spec = JobSpec.model_validate(spec_of(name))
    data = build_data(spec.data, model=spec.model, task=spec.task)
    model = build_model(spec.model, data=data.description, seed=0)
    assert spec.evaluation.share is not None
    return steps_of_share(
        spec.evaluation.share,
        batch_size=spec.training.batch_size,
        num_passes=num_passes(model, datasets=Datasets.of(data), spec=spec.evaluation),
    )


def peer(kind: str, name: str) -> float:
    command = [sys.executable, "-m", "benchmarks.throughput_peers", kind, json.dumps(spec_of(name))]
    environment = os.environ | {"PYTHONPATH": "tests"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1])["steps_per_second"])


def rounds_of(
    client: Client, name: str, *, peers: list[str], rounds: int
) -> list[dict[str, float]]:
    period = period_of(name)
    print(f"{name}: an evaluation every {period} steps", flush=True)
    ours(client, name, period=period)  # warms up; not counted
    return [
        ours(client, name, period=period) | {kind: peer(kind, name) for kind in (BARE, *peers)}
        for _ in range(rounds)
    ]


def report(name: str, rounds: list[dict[str, float]]) -> None:
    for kind in rounds[0]:
        rate = statistics.median(r[kind] for r in rounds)
        share = statistics.median(r[kind] / r[BARE] for r in rounds)
        print(f"{name:8} {kind:18} {rate:8.1f} steps/s   {share:5.2f} x bare", flush=True)
    share = statistics.median(r[OURS] / r[BARE] for r in rounds)
    verdict = "holds" if share >= LIMIT else "MISSED"
    print(f"{name}: {share:.3f} of a bare loop, at least {LIMIT}: {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), help="which of them to run")
    arguments = parser.parse_args()
    peers = [kind for kind in PEERS if kind not in arguments.without]
    print(f"load {os.getloadavg()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="roadless-bench-") as folder:
        head = start_head(Path(folder), num_cpus=2)
        stack = Stack(Path(folder) / "home", head)
        with stack.client() as client:
            for name in arguments.jobs:
                report(name, rounds_of(client, name, peers=peers, rounds=arguments.rounds))
        stack.close()
        head.stop()
    print(f"load at the end {os.getloadavg()}")


if __name__ == "__main__":
    main()
