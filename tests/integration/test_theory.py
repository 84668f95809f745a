"""What the theory says of real jobs is what their exported metrics give offline."""

import numpy as np
import pytest
from stack import wait_for_end

from roadless.optim.theory.bounds import split_bound, split_schedule_free_bound
from roadless.optim.theory.fitting import fit_losses
from roadless.service.contract.states import Phase

STEPS = 60
AVERAGED = {"optimizer": {"name": "sgd_schedulefree", "lr": 0.5, "warmup_steps": 10}}
SCHEDULED = {"optimizer": {"name": "adamw", "lr": 0.01}, "schedule": {"name": "wsd"}}


@pytest.mark.parametrize(
    ("changes", "split"),
    [(AVERAGED, split_schedule_free_bound), (SCHEDULED, split_bound)],
    ids=["schedule-free", "wsd"],
)
def test_a_real_jobs_theory_is_that_of_its_metrics(client, changes, split):
    """Bounds, distance and line, from nothing but what a user can download."""
    spec = {
        "name": "theory",
        "model": {"kind": "preset", "name": "mlp", "hidden": []},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "training": {"batch_size": 64},
        "budget": {"max_steps": STEPS},
        "evaluation": {"every_steps": 5},
    }
    job = wait_for_end(client, client.submit(spec | changes).id)
    assert job.phase is Phase.SUCCEEDED, job.message
    rates, norms = (
        np.array(client.metric(job.id, name, buckets=2000).last)
        for name in ("optimizer.lr", "grad.norm")
    )
    assert rates.size == norms.size == STEPS
    curve = client.eval_curve(job.id)
    losses = [point.loss for point in curve]
    terms = [split(rates[: p.step], norms[: p.step], D=1.0) for p in curve]
    distances, noises = [one.t1 for one in terms], [one.t2 + one.t3 for one in terms]

    seen = client.theory(job.id)
    bounds = seen.distance**2 * np.array(distances) + noises
    assert [point.bound for point in seen.data] == pytest.approx(bounds, rel=1e-9)
    assert [point.loss for point in seen.data] == losses
    line = fit_losses(bounds, losses, method="huber")
    if seen.distance_source == "fitted":
        assert pytest.approx(1, rel=1e-4) == line.M
    assert [p.predicted for p in seen.data] == pytest.approx(line.predict(bounds), rel=1e-4)
    assert seen.num_steps == STEPS
    assert seen.base_lr == rates.max()
    assert [p.bound for p in client.eval_curve(job.id, bound=True)] == [p.bound for p in seen.data]
