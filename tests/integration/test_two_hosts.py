"""A job on two hosts outlives the link between them (promise P9), and returns to both."""

import subprocess
import sys
import time
from pathlib import Path

import paced_models
import pytest
from stack import rank_pids, wait_for_end, wait_for_step, wait_until
from two_hosts import can_make_hosts, two_hosts

from roadless.service.contract.states import Phase

pytestmark = pytest.mark.skipif(
    not can_make_hosts(), reason="needs root and iproute2 to make network namespaces"
)

#: A lost node is noticed by itself, long before the lease of its attempt is over.
LEASE_SECONDS = 30.0

SPEC = {
    "name": "two hosts",
    "model": {"kind": "entry_point", "factory": "paced_models:paced"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
    "training": {"batch_size": 48, "seed": 3},
    "parallelism": {"min_workers": 1, "max_workers": 2},
    "budget": None,
    "evaluation": {"every_steps": 1000},
    "checkpoints": {"state_every_steps": 20},
}


def num_ranks(client, job_id):
    """Of each attempt so far."""
    started = [event for event in client.events(job_id) if event.code == "attempt.started"]
    return [int(event.message.split()[2]) for event in started]


def listening(pids):
    """Where each process listens, as it is seen in its own network namespace."""
    script = "import psutil, sys; print(*{c.laddr.ip for c in psutil.Process(int(sys.argv[1]))" + (
        ".net_connections() if c.status == 'LISTEN'})"
    )
    enter = ["nsenter", "--net"]
    return [
        set(
            subprocess.check_output(
                [*enter, "--target", str(pid), sys.executable, "-c", script, str(pid)], text=True
            ).split()
        )
        for pid in pids
    ]


def test_a_cut_link_shrinks_the_job_and_a_mended_one_grows_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(paced_models.__file__).parent))  # for ranks
    with two_hosts(tmp_path / "home", cpus_a=1, cpus_b=1) as stack, stack.client() as client:
        job_id = client.submit(SPEC).id
        wait_for_step(client, job_id, 50)
        assert num_ranks(client, job_id) == [2]
        heard_at = listening(rank_pids(client.job(job_id).attempt.id))
        hosts = [{stack.hosts.a.address}, {stack.hosts.b.address}]
        assert sorted(heard_at, key=sorted) == hosts, "rank 0 may be on either"

        stack.hosts.cut()
        cut_at = time.monotonic()
        wait_until(lambda: client.job(job_id).attempt.fence == 2)
        resumed = wait_until(lambda: client.job(job_id).attempt.resumed_step)
        wait_for_step(client, job_id, resumed + 1)
        wait_until(lambda: client.job(job_id).phase is Phase.RUNNING)
        seconds = time.monotonic() - cut_at
        print(f"trained on after {seconds:.1f} s")
        assert num_ranks(client, job_id) == [2, 1]
        assert seconds < LEASE_SECONDS

        stack.leave_b()
        stack.hosts.mend()
        stack.join_b()
        wait_until(lambda: num_ranks(client, job_id) == [2, 1, 2])
        wait_for_step(client, job_id, client.job(job_id).progress.step + 20)
        client.stop(job_id)
        assert wait_for_end(client, job_id).phase is Phase.STOPPED
