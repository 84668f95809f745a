"""An agent or a fork server dies or freezes, and costs as little as a rank (P3, P6, P9, P10)."""

import time
from contextlib import suppress

import psutil
import pytest
from drilled_job import spec_of
from stack import curve_of, rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.contract.states import Phase


def server_of(client, job_id):
    """The fork server of the job's ranks."""
    return psutil.Process(rank_pids(client.job(job_id).attempt.id)[0]).parent()


def agent_of(client, job_id):
    return server_of(client, job_id).parent()


def wait_for_a_standby():
    """Until both of the node's fork servers have loaded what ranks need."""

    def are_warm():
        found = [one for one in psutil.Process().children(recursive=True) if is_fork_server(one)]
        sizes = sorted(one.memory_info().rss for one in found)
        return len(sizes) == 2 and sizes[0] > 0.9 * sizes[1]

    wait_until(are_warm)


def is_fork_server(process):
    """Ranks, which are its children, have its command line too."""
    with suppress(psutil.Error):
        words, above = process.cmdline(), process.parent().cmdline()
        return "roadless.worker.agent.fork_server" in words and words != above
    return False


@pytest.mark.parametrize("victim", [agent_of, server_of])
def test_what_starts_ranks_dies_and_the_curve_has_no_trace_of_it(
    stack, client, reference, capsys, victim
):
    wait_for_a_standby()
    job_id = client.submit(spec_of(2)).id
    wait_for_step(client, job_id, 50)
    first = client.job(job_id).attempt.id
    killed_at = time.monotonic()
    victim(client, job_id).kill()
    wait_until(lambda: (now := client.job(job_id).attempt).fence == 2 and now.first_step_at)
    with capsys.disabled():
        print(f"\n{victim.__name__}: stepping again after {time.monotonic() - killed_at:.2f} s")
    assert rank_pids(first) == []
    job = wait_for_end(client, job_id)
    assert (job.phase, job.attempt.fence) == (Phase.SUCCEEDED, 2)
    assert curve_of(client, job_id) == reference(2)


def test_an_agent_and_the_runner_die_at_once_and_no_rank_begins_twice(stack, client, reference):
    """The next runner gets the assignment again, and finds neither the ranks nor who knew them."""
    job_id = client.submit(spec_of(2)).id
    wait_until(lambda: client.job(job_id).attempt)
    first = client.job(job_id).attempt.id
    wait_until(lambda: len(rank_pids(first)) == 2)
    agent = agent_of(client, job_id)
    stack.runner.kill()
    agent.kill()
    stack.runner.wait()
    stack.start_runner()
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED
    assert job.attempt.id != first
    assert rank_pids(first) == []
    assert curve_of(client, job_id) == reference(2)


def test_a_job_trains_ends_and_leaves_its_seats_although_its_agent_is_frozen(
    stack, client, reference
):
    job_id = client.submit(spec_of(2)).id
    wait_for_step(client, job_id, 50)
    agent = agent_of(client, job_id)
    agent.suspend()
    try:
        job = wait_for_end(client, job_id)
        assert rank_pids(job.attempt.id) == []
    finally:
        agent.resume()
    assert (job.phase, job.attempt.fence) == (Phase.SUCCEEDED, 1)
    assert curve_of(client, job_id) == reference(2)
