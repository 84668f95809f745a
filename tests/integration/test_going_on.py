"""P6: a job that was stopped, paused or extended has the curve of one that never was, bit for bit.

The only trace is the evaluation at the step where it stood, which is taken out before comparing.
"""

import pytest
from stack import curve_of, undisturbed_curves, wait_for_end, wait_for_step, wait_until

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.requests import Extend
from roadless.service.contract.states import Phase

STEPS = 120
EVERY = 30


def spec_of(num_workers: int, **changes):
    return {
        "name": f"continued on {num_workers}",
        "model": {"kind": "preset", "name": "convnet", "width": 32},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 20},
        "training": {"batch_size": 48, "seed": 4},
        "parallelism": {"num_workers": num_workers},
        "budget": {"max_steps": STEPS},
        "evaluation": {"every_steps": EVERY, "batch_size": 128, "batchnorm_batches": 2},
        "checkpoints": {"state_every_steps": 50},
        **changes,
    }


@pytest.fixture(scope="module")
def undisturbed(stack):
    """Curves of whole runs, by number of ranks."""
    return undisturbed_curves(stack, spec_of)


def curve_without(client, job_id, *stood_at):
    """The curve less the points of evaluations that only an interruption asked for."""
    metrics, points = curve_of(client, job_id)
    extra = {step for step in stood_at if step % EVERY}
    assert extra <= {point[0] for point in points}
    return metrics, [point for point in points if point[0] not in extra]


def wait_for(client, job_id, phase):
    wait_until(lambda: client.job(job_id).phase is phase)
    return client.job(job_id)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_stopped_job_that_is_extended_is_the_longer_run(client, undisturbed, num_workers):
    """extend(stop(a), b) == run(a + b), of a job that did not know when it would end."""
    job_id = client.submit(spec_of(num_workers, budget=None)).id
    wait_for_step(client, job_id, 20)
    client.stop(job_id)
    stopped = wait_for_end(client, job_id)
    assert stopped.phase is Phase.STOPPED
    step = stopped.progress.step
    job = client.extend(job_id, Extend(steps=STEPS - step))
    assert (job.phase, job.spec.budget.max_steps) == (Phase.QUEUED, STEPS)
    ended = wait_for_end(client, job_id)
    assert (ended.phase, ended.attempt.resumed_step) == (Phase.SUCCEEDED, step)
    assert curve_without(client, job_id, step) == undisturbed(num_workers)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_finished_job_that_is_extended_is_the_longer_run(client, undisturbed, num_workers):
    job_id = client.submit(spec_of(num_workers, budget={"max_steps": 37})).id
    assert wait_for_end(client, job_id).phase is Phase.SUCCEEDED
    client.extend(job_id, Extend(steps=STEPS - 37))
    ended = wait_for_end(client, job_id)
    assert (ended.phase, ended.attempt.resumed_step) == (Phase.SUCCEEDED, 37)
    assert curve_without(client, job_id, 37) == undisturbed(num_workers)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_paused_and_resumed_job_is_the_uninterrupted_run(client, undisturbed, num_workers):
    job_id = client.submit(spec_of(num_workers)).id
    wait_for_step(client, job_id, 20)
    client.pause(job_id)
    paused = wait_for(client, job_id, Phase.PAUSED)
    (state, *_) = client.checkpoints(job_id, kind=CheckpointKind.RESUME)
    assert state.step == paused.progress.step
    assert client.eval_curve(job_id)[-1].checkpoint_id is not None
    client.resume(job_id)
    ended = wait_for_end(client, job_id)
    assert (ended.phase, ended.attempt.resumed_step) == (Phase.SUCCEEDED, state.step)
    assert curve_without(client, job_id, state.step) == undisturbed(num_workers)


def test_a_job_paused_without_a_save_lives_the_steps_since_its_last_state_again(
    client, undisturbed
):
    job_id = client.submit(spec_of(2, checkpoints={"state_every_steps": 20})).id
    wait_for_step(client, job_id, 30)
    wait_until(lambda: list(client.checkpoints(job_id, kind=CheckpointKind.RESUME)))
    client.pause(job_id, checkpoint="latest")
    wait_for(client, job_id, Phase.PAUSED)
    client.resume(job_id)
    ended = wait_for_end(client, job_id)
    assert ended.attempt.resumed_step % 20 == 0
    assert curve_of(client, job_id) == undisturbed(2)


def test_ranks_go_on_under_a_budget_that_is_extended_while_they_train(client, undisturbed):
    """No new attempt, no evaluation in between: not a trace."""
    job_id = client.submit(spec_of(2, budget={"max_steps": STEPS - 20})).id
    wait_for_step(client, job_id, 10)
    client.extend(job_id, Extend(steps=20))
    ended = wait_for_end(client, job_id)
    assert (ended.phase, ended.attempt.fence) == (Phase.SUCCEEDED, 1)
    assert curve_of(client, job_id) == undisturbed(2)


def test_an_extended_schedule_trains_what_its_specification_says(client):
    """The plan is part of the specification: sent anew, it makes the same rates and curve."""
    scheduled = spec_of(
        1,
        optimizer={"name": "adamw", "lr": 0.01},
        schedule={"name": "wsd", "warmup_steps": 5, "cooldown_len": 0.3},
        budget={"max_steps": 30},
    )
    job_id = client.submit(scheduled).id
    assert wait_for_end(client, job_id).phase is Phase.SUCCEEDED
    plan = {"kind": "second_stage", "factor": 0.5}
    job = client.extend(job_id, Extend(steps=30, plan=plan))
    assert wait_for_end(client, job_id).phase is Phase.SUCCEEDED
    again = client.submit(job.spec.model_dump(mode="json")).id
    assert wait_for_end(client, again).phase is Phase.SUCCEEDED
    rates = client.metric(job_id, "optimizer.lr", buckets=2000).last
    assert rates[29] < rates[5] == 0.01
    assert rates[30] == pytest.approx(0.005)
    assert curve_of(client, job_id) == curve_of(client, again)
