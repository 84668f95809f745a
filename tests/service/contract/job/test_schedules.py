"""Which schedules a job may have, and what of the rest of its specification they need."""

import pytest
from pydantic import ValidationError

from roadless.service.contract.job.schedules import whole_steps
from roadless.service.contract.job.spec import JobSpec


def spec_with(digits_spec, schedule, **changes):
    plain = {**digits_spec, "optimizer": {"name": "adamw", "lr": 0.01}}
    return JobSpec.model_validate({**plain, "schedule": schedule, **changes})


def test_a_job_has_no_schedule_unless_it_asks_for_one(digits_spec):
    assert JobSpec.model_validate(digits_spec).schedule is None


@pytest.mark.parametrize(
    "name", ["wsd", "cosine", "linear", "one_minus_sqrt", "polynomial_backward"]
)
def test_a_schedule_with_a_horizon_needs_a_number_of_steps(digits_spec, name):
    assert spec_with(digits_spec, {"name": name}).schedule.name == name
    for budget in (None, {"max_seconds": 60}):
        with pytest.raises(ValidationError, match=r"schedule.*\n.*expected budget.max_steps"):
            spec_with(digits_spec, {"name": name}, budget=budget)


@pytest.mark.parametrize("name", ["constant", "sqrt", "piecewise_constant", "polynomial_cooldown"])
def test_a_schedule_without_one_suits_an_open_ended_job(digits_spec, name):
    assert spec_with(digits_spec, {"name": name}, budget=None).budget is None


def test_a_cooldown_makes_a_horizon(digits_spec):
    with pytest.raises(ValidationError, match="for 'sqrt', whose rates depend"):
        spec_with(digits_spec, {"name": "sqrt", "cooldown_len": 0.1}, budget=None)


@pytest.mark.parametrize(
    ("schedule", "max_steps", "fits"),
    [
        ({"name": "linear", "warmup_steps": 10}, 10, True),
        ({"name": "linear", "warmup_steps": 11}, 10, False),
        ({"name": "wsd", "warmup_steps": 50, "cooldown_len": 0.5}, 100, True),
        ({"name": "wsd", "warmup_steps": 51, "cooldown_len": 0.5}, 100, False),
    ],
)
def test_warmup_and_cooldown_fit_into_the_steps(digits_spec, schedule, max_steps, fits):
    budget = {"max_steps": max_steps}
    if fits:
        spec_with(digits_spec, schedule, budget=budget)
        return
    with pytest.raises(ValidationError, match="expected warmup and cooldown within"):
        spec_with(digits_spec, schedule, budget=budget)


def test_one_of_schedule_and_optimizer_warms_up(digits_spec):
    optimizer = {"name": "adamw", "lr": 0.01, "warmup_steps": 5}
    schedule = {"name": "constant", "warmup_steps": 7}
    with pytest.raises(ValidationError, match="saw 7 and 5 steps"):
        spec_with(digits_spec, schedule, optimizer=optimizer)


@pytest.mark.parametrize(
    ("milestones", "factors", "said"),
    [
        ([10], [], "expected a factor for each of 1 milestones, saw 0"),
        ([10, 10], [0.5, 0.5], "expected ascending milestones"),
        ([10], [0], "greater than 0"),
    ],
)
def test_milestones_ascend_and_have_a_factor_each(digits_spec, milestones, factors, said):
    schedule = {"name": "piecewise_constant", "milestones": milestones, "factors": factors}
    with pytest.raises(ValidationError, match=said):
        spec_with(digits_spec, schedule)


@pytest.mark.parametrize(
    ("share", "steps", "rounded"), [(0.29, 100, 29), (0.57, 100, 57), (0.2, 103, 21), (0.07, 10, 1)]
)
def test_a_cooldown_has_the_nearest_whole_number_of_steps(digits_spec, share, steps, rounded):
    """A share of 0.29 is, as a float, a little less."""
    schedule = spec_with(
        digits_spec, {"name": "wsd", "cooldown_len": share}, budget={"max_steps": steps}
    ).schedule
    assert whole_steps(schedule.cooldown_len, steps) == rounded
