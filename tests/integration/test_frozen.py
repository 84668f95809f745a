"""P4: ranks that stand still are alive to kernel, agent and runner, and yet are noticed."""

import os
import signal

import pytest
from drilled_job import spec_of
from stack import curve_of, rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.contract.states import Phase

#: Short, so that the test is; long enough for ranks of a busy machine to report in.
LEASE_SECONDS = "6"


@pytest.fixture
def short_leases(stack):
    """The service, with leases that end soon."""
    restart(stack, ROADLESS_LEASE_SECONDS=LEASE_SECONDS)
    yield
    restart(stack)


def restart(stack, **settings):
    stack.service.terminate()
    stack.service.wait(20)
    stack.start_service(**settings)


def test_ranks_that_are_all_frozen_are_replaced_and_leave_no_trace_in_the_curve(
    stack, client, reference, short_leases
):
    """Nobody waits for them in vain: no peer is left that could notice, nor a watchdog."""
    expected = reference(2)
    job_id = client.submit(spec_of(2)).id
    wait_for_step(client, job_id, 40)
    frozen = client.job(job_id).attempt
    pids = rank_pids(frozen.id)
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: client.job(job_id).attempt.fence > frozen.fence)
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED
    (lost,) = [e for e in client.events(job_id) if e.code == "attempt.lease_expired"][:1]
    assert lost.attempt_id == frozen.id
    assert lost.message.startswith("no news from any rank for ")
    assert lost.message.endswith("; they use no processor time")
    assert rank_pids(frozen.id) == []
    assert curve_of(client, job_id) == expected
