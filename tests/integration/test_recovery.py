"""What dies is replaced, and the stored curve is that of a run in which nothing died (P1, P6)."""

import os
import signal
import time

import pytest
from drilled_job import spec_of
from stack import curve_of, rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.contract.states import Phase


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_a_killed_rank_leaves_no_trace_in_the_curve(client, reference, num_workers):
    job_id = client.submit(spec_of(num_workers)).id
    wait_for_step(client, job_id, 50)
    victim = rank_pids(client.job(job_id).attempt.id)[-1]
    os.kill(victim, signal.SIGKILL)
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED
    assert job.attempt.fence == 2
    assert job.attempt.resumed_step in (30, 60, 90, 120)
    assert curve_of(client, job_id) == reference(num_workers)


def test_a_service_that_is_killed_and_away_costs_no_step(stack, client, reference):
    job_id = client.submit(spec_of(2)).id
    wait_for_step(client, job_id, 20)
    stack.service.kill()
    stack.service.wait()
    time.sleep(20)
    stack.start_service()
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED
    assert job.attempt.fence == 1
    assert curve_of(client, job_id) == reference(2)


def test_a_killed_runner_is_replaced_and_training_goes_on(stack, client, reference):
    job_id = client.submit(spec_of(2)).id
    wait_for_step(client, job_id, 20)
    stack.runner.kill()
    stack.runner.wait()
    wait_for_step(client, job_id, 60)
    stack.start_runner()
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED
    assert job.attempt.fence == 1
    assert curve_of(client, job_id) == reference(2)


def test_a_rank_that_dies_while_the_runner_is_away_is_replaced_by_the_next_runner(
    stack, client, reference
):
    job_id = client.submit(spec_of(2)).id
    wait_for_step(client, job_id, 50)
    stack.runner.kill()
    stack.runner.wait()
    os.kill(rank_pids(client.job(job_id).attempt.id)[0], signal.SIGKILL)
    wait_until(lambda: client.job(job_id).phase is Phase.RECOVERING)
    stack.start_runner()
    assert wait_for_end(client, job_id).phase is Phase.SUCCEEDED
    assert curve_of(client, job_id) == reference(2)


def test_a_frozen_rank_is_killed_when_its_job_is_cancelled(stack, client):
    job_id = client.submit(spec_of(1, budget=None)).id
    wait_for_step(client, job_id, 10)
    first = client.job(job_id).attempt.id
    (pid,) = rank_pids(first)
    os.kill(pid, signal.SIGSTOP)
    client.cancel(job_id)
    wait_for_end(client, job_id)
    assert rank_pids(first) == []
