"""``make bench-recovery``: from the kill -9 of a rank to the next attempt's first stored step."""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from stack import Stack, rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.client.client import Client
from roadless.service.contract.resources import Job
from roadless.worker.runner.ray_cluster import start_head


def spec_of(workers: int) -> dict:
    return {
        "name": f"recovery with {workers}",
        "model": {"kind": "preset", "name": "convnet"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
        "training": {"batch_size": 48},
        "parallelism": {"num_workers": workers},
        "evaluation": {"every_steps": 20},
        "checkpoints": {"state_every_steps": 20},
    }


def seconds_to_recover(client: Client, workers: int) -> float:
    """Kill the last rank of a running job; return how long until a step is stored again."""
    job_id = client.submit(spec_of(workers)).id
    wait_for_step(client, job_id, 30)
    killed_at = datetime.now(UTC)
    os.kill(rank_pids(client.job(job_id).attempt.id)[-1], signal.SIGKILL)

    def stepping_again() -> Job | None:
        job = client.job(job_id)
        is_second = job.attempt is not None and job.attempt.fence == 2
        return job if is_second and job.attempt.first_step_at else None

    job = wait_until(stepping_again)
    client.cancel(job_id)
    wait_for_end(client, job_id)
    time.sleep(0.5)
    return (job.attempt.first_step_at - killed_at).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roadless-bench-") as folder:
        head = start_head(Path(folder), num_cpus=3)
        stack = Stack(Path(folder) / "home", head)
        with stack.client() as client:
            for workers in (1, 2, 3):
                seconds = sorted(
                    seconds_to_recover(client, workers) for _ in range(arguments.kills)
                )
                figures = {
                    "ranks": workers,
                    "kills": len(seconds),
                    "p50_seconds": round(statistics.median(seconds), 3),
                    "p95_seconds": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
                    "max_seconds": round(seconds[-1], 3),
                }
                print(json.dumps(figures), flush=True)
        stack.close()
        head.stop()


if __name__ == "__main__":
    main()
