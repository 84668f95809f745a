"""A job that loses capacity goes on smaller, and moves back up when there is room; same curve."""

import os
import signal

import pytest
from stack import rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.contract.states import Phase

STEPS = 200
#: float32, another number of ranks, over 200 steps.
TOLERANCE = 1e-4


def spec_of(**changes):
    return {
        "name": "elastic",
        "model": {"kind": "entry_point", "factory": "paced_models:paced"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.002, "warmup_steps": 20},
        "training": {"batch_size": 48, "seed": 3},
        "parallelism": {"min_workers": 1, "max_workers": 2, "cpus_per_worker": 1},
        "budget": {"max_steps": STEPS},
        "evaluation": {"every_steps": 50},
        "checkpoints": {"state_every_steps": 20},
        **changes,
    }


def sizes_of(client, job_id):
    """Numbers of ranks of the attempts so far, in words of the job's history."""
    started = [event for event in client.events(job_id) if event.code == "attempt.started"]
    return [int(event.message.split()[2]) for event in started]


@pytest.fixture(scope="module")
def expected():
    """Losses by step of two replicas that are left alone, for both strategies; found once."""
    return {}


def undisturbed(client, expected):
    if not expected:
        job = client.submit(spec_of(parallelism={"num_workers": 2})).id
        assert wait_for_end(client, job).phase is Phase.SUCCEEDED
        expected |= {point.step: point.loss for point in client.eval_curve(job)}
    return expected


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_job_shrinks_with_its_capacity_and_grows_again(client, expected, strategy):
    parallelism = {**spec_of()["parallelism"], "strategy": strategy}
    expected = undisturbed(client, expected)
    # It takes two of the three cores, and is preferred.
    takes_two = {"num_workers": 1, "cpus_per_worker": 2}
    blocker = spec_of(name="blocker", parallelism=takes_two, priority=10, budget=None)

    job_id = client.submit(spec_of(parallelism=parallelism)).id
    wait_for_step(client, job_id, 30)
    blocking = client.submit(blocker).id
    os.kill(rank_pids(client.job(job_id).attempt.id)[-1], signal.SIGKILL)
    wait_until(lambda: len(sizes_of(client, job_id)) == 2)
    wait_for_step(client, job_id, 60)
    client.cancel(blocking)
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED, job.message
    assert sizes_of(client, job_id) == [2, 1, 2]
    losses = {point.step: point.loss for point in client.eval_curve(job_id)}
    assert losses == pytest.approx(expected, rel=TOLERANCE)
