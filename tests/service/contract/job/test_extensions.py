"""Which extensions of a schedule a specification may have."""

import pytest
from pydantic import ValidationError

from roadless.service.contract.job.spec import JobSpec

COOLDOWN = {"kind": "cooldown", "cooldown_len": 0.5}
KEEP = {"kind": "keep_last_rate"}
WSD = {"name": "wsd", "warmup_steps": 10}


def spec_with(digits_spec, *extensions, schedule=WSD, max_steps=100):
    return JobSpec.model_validate(
        {
            **digits_spec,
            "optimizer": {"name": "adamw"},
            "schedule": schedule,
            "budget": {"max_steps": max_steps},
            "schedule_extensions": list(extensions),
        }
    )


def extension(from_step, horizon, plan=KEEP):
    return {"from_step": from_step, "horizon": horizon, "plan": plan}


def test_extensions_survive_the_way_through_json(digits_spec):
    spec = spec_with(digits_spec, extension(40, 50, COOLDOWN), extension(60, 60))
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.schedule_extensions[0].plan.cooldown_len == 0.5


@pytest.mark.parametrize(
    ("extensions", "said"),
    [
        ([(51, 50)], "saw 51, 50 and 100"),
        ([(50, 100)], "saw 50, 100 and 100"),
        ([(10, 60), (10, 50)], "saw 10, 60 and 50"),
        ([(40, 50), (30, 60)], "expected extensions in order, saw 30 after 40"),
    ],
)
def test_extensions_follow_each_other(digits_spec, extensions, said):
    with pytest.raises(ValidationError, match=said):
        spec_with(digits_spec, *(extension(*one) for one in extensions))


@pytest.mark.parametrize("schedule", [None, {"name": "constant"}, {"name": "sqrt"}])
def test_only_a_schedule_with_a_horizon_is_extended(digits_spec, schedule):
    with pytest.raises(ValidationError, match="expected a schedule with a horizon"):
        spec_with(digits_spec, extension(10, 50), schedule=schedule)


def test_a_cooldown_suits_a_schedule_that_has_one(digits_spec):
    with pytest.raises(ValidationError, match="second_stage or keep_last_rate for 'cosine'"):
        spec_with(digits_spec, extension(10, 50, COOLDOWN), schedule={"name": "cosine"})


def test_warmup_and_a_longer_cooldown_fit_into_the_steps(digits_spec):
    whole = {"kind": "cooldown", "cooldown_len": 1.0}
    with pytest.raises(ValidationError, match="within the 100 steps, saw 110 steps"):
        spec_with(digits_spec, extension(10, 50, whole))


@pytest.mark.parametrize(
    "plan",
    [
        {"kind": "cooldown"},
        {"kind": "cooldown", "cooldown_len": 0},
        {"kind": "second_stage", "factor": 1.1},
        {"kind": "keep_last_rate", "factor": 1},
        {"kind": "hope"},
    ],
)
def test_a_plan_is_one_of_three_with_its_own_number(digits_spec, plan):
    with pytest.raises(ValidationError):
        spec_with(digits_spec, extension(10, 50, plan))


def test_a_specification_of_before_has_no_extensions(digits_spec):
    assert JobSpec.model_validate(digits_spec).schedule_extensions == ()
