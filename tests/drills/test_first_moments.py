"""P10: a crash between what is wanted and what is done starts nothing twice."""

import os
import signal
import time

import pairs
import pytest
from stack import curve_of, rank_pids
from up_stack import RUNNER

from roadless.service.contract.states import TERMINAL, Phase


@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.8])
def test_the_runner_is_killed_in_the_first_moments_of_an_attempt(up, figure, seconds):
    """No attempt ever has more ranks than it shall, and the curve shows nothing."""
    curve = pairs.reference(up, pairs.SHORT)[1]
    with up.client() as client:
        job_id = client.submit(pairs.spec("first moments", ranks=2, steps=pairs.SHORT[1])).id
        time.sleep(seconds)
        os.kill(up.pid(RUNNER), signal.SIGKILL)
        most = 0
        while (job := client.job(job_id)).phase not in TERMINAL:
            most = max(most, len(rank_pids(job.attempt.id)) if job.attempt else 0)
            time.sleep(0.2)
        assert job.phase is Phase.SUCCEEDED
        assert curve_of(client, job_id) == curve
    figure(f"attempt {job.attempt.fence}, at most {most} ranks at once")
    assert most == 2
