"""``make bench-start``: from the POST to the first stored step, next to Ray's own way.

Ours: jobs of one and of two ranks, one after the other, on a warm runner; the time is what the
API answers (``started_at - created_at``), so it ends when the step is stored. The peer: the
same toy through Ray's Jobs API and TorchTrainer on a cluster of its own; its time ends at the first
optimizer step, which nobody has stored yet.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.job_submission import JobSubmissionClient
from stack import Stack, free_port, wait_for_end, wait_until

from roadless.worker.runner.ray_cluster import start_head, stop_trees

PEER = Path(__file__).with_name("peer_train.py")
PEER_SECONDS = 120.0


def spec_of(workers: int) -> dict:
    return {
        "name": f"start with {workers}",
        "model": {"kind": "preset", "name": "mlp"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
        "parallelism": {"num_workers": workers},
        "budget": {"max_steps": 20},
    }


def ours(stack: Stack, workers: int, jobs: int) -> list[float]:
    """Seconds from POST to first stored step, one job after the other."""
    seconds = []
    with stack.client() as client:
        wait_for_end(client, client.submit(spec_of(workers)).id)  # warms up; not counted
        for _ in range(jobs):
            job = wait_for_end(client, client.submit(spec_of(workers)).id)
            assert job.started_at is not None, job.message
            seconds.append((job.started_at - job.created_at).total_seconds())
    return seconds


def peers(client: JobSubmissionClient, folder: Path, workers: int, jobs: int) -> list[float]:
    """Seconds from submission to the first optimizer step."""
    seconds = []
    for number in range(jobs):
        first_step = folder / f"first-step-{workers}-{number}"
        command = (
            f"{sys.executable} {PEER} --workers {workers} "
            f"--first-step-file {first_step} --storage {folder / 'storage'}"
        )
        submitted = time.time()
        job_id = client.submit_job(entrypoint=command)
        _wait_for_peer(client, job_id)
        seconds.append(float(first_step.read_text()) - submitted)
    return seconds


def _wait_for_peer(client: JobSubmissionClient, job_id: str) -> None:
    give_up = time.monotonic() + PEER_SECONDS
    while not client.get_job_status(job_id).is_terminal():
        assert time.monotonic() < give_up, client.get_job_logs(job_id)
        time.sleep(0.2)
    assert client.get_job_status(job_id) == "SUCCEEDED", client.get_job_logs(job_id)


@contextmanager
def peer_cluster(folder: Path) -> Iterator[JobSubmissionClient]:
    """A Ray head with its dashboard, which carries the Jobs API; twice the cores, so none waits."""
    port = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--num-cpus=4", "--port=0", "--disable-usage-stats", "--include-dashboard=true"]
    command += [f"--dashboard-port={port}", f"--temp-dir={folder / 'r'}"]
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield wait_until(lambda: _connected(f"http://127.0.0.1:{port}"))
    finally:
        stop_trees([process.pid])
        process.wait()


def _connected(address: str) -> JobSubmissionClient | None:
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError):
        return None


def report(name: str, workers: int, seconds: list[float]) -> None:
    print(
        json.dumps(
            {
                "system": name,
                "ranks": workers,
                "jobs": len(seconds),
                "median_seconds": round(statistics.median(seconds), 3),
                "min_seconds": round(min(seconds), 3),
                "max_seconds": round(max(seconds), 3),
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--peer-jobs", type=int, default=3)
    arguments = parser.parse_args()
    medians: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory(prefix="roadless-bench-") as name:
        folder = Path(name)
        head = start_head(folder, num_cpus=2)
        stack = Stack(folder / "home", head)
        for workers in (1, 2):
            seconds = ours(stack, workers, arguments.jobs)
            medians["roadless", workers] = statistics.median(seconds)
            report("roadless", workers, seconds)
        stack.close()
        head.stop()
        with peer_cluster(folder) as client:
            for workers in (1, 2):
                seconds = peers(client, folder, workers, arguments.peer_jobs)
                medians["ray train", workers] = statistics.median(seconds)
                report("ray jobs api + TorchTrainer", workers, seconds)
    for workers in (1, 2):
        ratio = medians["ray train", workers] / medians["roadless", workers]
        print(f"{workers} rank(s): the peer's median is {ratio:.1f} times ours")


if __name__ == "__main__":
    main()
