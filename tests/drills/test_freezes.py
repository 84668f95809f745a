"""Freezes, by SIGSTOP: what is there and does nothing. A lease is 10 s here, not 30 s."""

import os
import signal
import time

from pairs import LONG, Pair, spec
from stack import wait_for_end, wait_for_step, wait_until
from up_stack import RUNNER, SERVICE, frozen, is_alive

from roadless.service.contract.states import Phase

#: Beyond three leases.
SECONDS = 35


def test_the_service(up, drill):
    """When it thaws, no lease has run out meanwhile, since nobody could renew one."""

    def fault(pair):
        with frozen(up.pid(SERVICE)):
            time.sleep(SECONDS)
        began = time.monotonic()
        wait_until(up.is_ready)
        return f"answers {time.monotonic() - began:.1f} s after the thaw"

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_the_runner(up, drill):
    """Ranks report, and that keeps their leases."""

    def fault(pair):
        with frozen(up.pid(RUNNER)):
            time.sleep(SECONDS)

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_the_node_agent(up, drill):
    """Ranks train and report without it."""

    def fault(pair):
        with frozen(pair.agent()):
            time.sleep(SECONDS)

    drill(up, fault, steps=LONG)


def seconds_until_lost(up, pair: Pair, index: int) -> float:
    began = time.monotonic()
    with up.client() as client:
        wait_until(lambda: client.job(pair.ids[index]).attempt.fence > 1, seconds=120)
    return time.monotonic() - began


def test_every_rank_for_good(up, drill):
    """Nobody reports, so the lease runs out, and the frozen ranks are killed and replaced."""

    def fault(pair):
        pids = [*pair.ranks(0), *pair.ranks(1)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        seconds = max(seconds_until_lost(up, pair, 0), seconds_until_lost(up, pair, 1))
        wait_until(lambda: not any(map(is_alive, pids)))
        return f"the next attempts begin after {seconds:.1f} s"

    assert min(drill(up, fault, steps=LONG).fences) >= 2


def test_one_rank_of_two(up, figure):
    """Its peer waits for it, and after ``retry.hang_seconds`` says so and leaves."""
    with up.client() as client:
        wanted = spec("one of two", ranks=2, steps=300, retry={"hang_seconds": 10})
        job_id = client.submit(wanted).id
        wait_for_step(client, job_id, 40)
        pair = Pair((job_id, job_id), (client.job(job_id), client.job(job_id)))
        frozen_rank = pair.ranks(0)[1]
        os.kill(frozen_rank, signal.SIGSTOP)
        figure(f"the next attempt begins after {seconds_until_lost(up, pair, 0):.1f} s")
        assert wait_for_end(client, job_id).phase is Phase.SUCCEEDED
        wait_until(lambda: not is_alive(frozen_rank))


def test_a_rank_that_thaws_after_its_successor_began(up, drill):
    """P2: runner and rank are frozen past the lease; the rank that thaws writes nothing."""

    def fault(pair):
        rank = pair.ranks(0)[0]
        with frozen(up.pid(RUNNER)):
            with frozen(rank), up.client() as client:
                wait_until(lambda: client.job(pair.ids[0]).phase is Phase.RECOVERING, seconds=90)
            wait_until(lambda: not is_alive(rank), seconds=90)

    assert drill(up, fault, steps=LONG).fences[0] >= 2
