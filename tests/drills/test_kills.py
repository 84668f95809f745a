"""Kills, by SIGKILL, while a job of one rank and a job of two train.

After each both jobs end well, with the curves of jobs that nobody disturbed, bit for bit, and
``up`` still runs, unless it was killed itself.
"""

import contextlib
import os
import signal
import time

from pairs import LONG
from stack import wait_until
from up_stack import GCS, HEAD, RAYLET, RUNNER, SERVICE, frozen, is_alive


def kill(*pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_service(up, drill):
    """No step is lost and no attempt ends: ranks keep what they report until it is back."""
    outcome = drill(up, lambda pair: kill(up.pid(SERVICE)))
    assert outcome.fences == [1, 1]


def test_the_service_which_stays_away_for_20_s(up, drill):
    """``up`` is frozen meanwhile, so that it starts no other. The same must hold."""

    def fault(pair):
        with frozen(up.process.pid):
            kill(up.pid(SERVICE))
            time.sleep(20)

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_the_runner(up, drill):
    """The next one finds the attempts that run; none ends."""

    def fault(pair):
        old = up.pid(RUNNER)
        kill(old)
        wait_until(lambda: up.pids(RUNNER) not in ([], [old]))

    assert drill(up, fault).fences == [1, 1]


def test_the_last_rank_of_each_job(up, drill):
    """A second attempt resumes from the newest training state."""
    outcome = drill(up, lambda pair: kill(pair.ranks(0)[-1], pair.ranks(1)[-1]))
    assert outcome.fences == [2, 2]


def test_the_first_rank_of_each_job(up, drill):
    """The same for the rank that reports and saves."""
    outcome = drill(up, lambda pair: kill(pair.ranks(0)[0], pair.ranks(1)[0]))
    assert outcome.fences == [2, 2]


def test_the_node_agent(up, drill):
    """Its ranks die with it; the one on standby starts the next ones."""
    assert drill(up, lambda pair: kill(pair.agent())).fences == [2, 2]


def test_the_fork_server(up, drill):
    """Its ranks die with it; the one on standby forks the next ones."""
    assert drill(up, lambda pair: kill(pair.fork_server())).fences == [2, 2]


def test_service_runner_and_ranks_at_once(up, drill):
    """What each replaces does not wait for the others."""

    def fault(pair):
        kill(up.pid(SERVICE), up.pid(RUNNER), pair.ranks(0)[-1], pair.ranks(1)[-1])

    assert drill(up, fault).fences == [2, 2]


def of_the_head(up, drill, what):
    """``up`` replaces the whole head, and nothing of the old one is left."""

    def fault(pair):
        old = [process.pid for process in up.processes()]
        kept = {up.pid(SERVICE)}
        kill(up.pid(what))
        wait_until(lambda: not [pid for pid in old if pid not in kept and is_alive(pid)])

    outcome = drill(up, fault)
    assert up.process.poll() is None
    assert min(outcome.fences) >= 2


def test_the_raylet(up, drill):
    of_the_head(up, drill, RAYLET)


def test_the_gcs(up, drill):
    of_the_head(up, drill, GCS)


def test_the_head(up, drill):
    of_the_head(up, drill, HEAD)


def test_everything_at_once(up, drill):
    """As when the machine loses power: the same command continues from what is stored."""

    def fault(pair):
        everything = [process.pid for process in up.processes()]
        kill(up.process.pid, *everything, *pair.ranks(0), *pair.ranks(1))
        up.process.wait()
        return f"up again after {up.start():.1f} s"

    assert min(drill(up, fault).fences) >= 2


def test_up_alone(up, drill):
    """What it started ends with it, or is ended by the next one; jobs go on."""

    def fault(pair):
        before = [process.pid for process in up.processes()]
        kill(up.process.pid)
        up.process.wait()
        seconds = up.start()
        assert not [pid for pid in before if is_alive(pid)]
        return f"up again after {seconds:.1f} s"

    assert min(drill(up, fault).fences) >= 2
