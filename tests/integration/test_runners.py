"""A cluster has one runner: the newest process, which goes on where the older one was."""

from drilled_job import spec_of
from stack import curve_of, wait_for_end, wait_for_step, wait_until

from roadless.service.contract.states import Phase


def test_a_second_runner_of_a_cluster_replaces_the_first_which_ends_and_training_goes_on(
    stack, client, reference
):
    job_id = client.submit(spec_of(2)).id
    wait_for_step(client, job_id, 20)
    first = stack.runner
    stack.start_runner()
    wait_until(lambda: first.poll() is not None)
    assert first.returncode == 1
    said = (stack.home / "roadless.worker.runner.log").read_text()
    assert "two of them would undo each other's work, so this one must stop" in said
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.SUCCEEDED
    assert job.attempt.fence == 1
    assert curve_of(client, job_id) == reference(2)
    assert stack.runner.poll() is None
