"""The learning rate of each step of a job with a schedule, also of one that was extended."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from training_bench import Bench, make_brief, make_spec

from roadless.optim.planning import Family, extend_by_cooldown, extend_by_factor
from roadless.optim.schedules.by_name import NAMES
from roadless.optim.schedules.by_name import rates as named_rates
from roadless.service.contract.job.schedules import ScheduleSpec, has_horizon
from roadless.worker.training.lr_schedule import build_lr_schedule

_SPEC: TypeAdapter[ScheduleSpec] = TypeAdapter(ScheduleSpec)
BASE_LR = 0.5
WSD = {"name": "wsd", "cooldown_len": 0.2}
PLANS = [
    {"kind": "cooldown", "cooldown_len": 0.5},
    {"kind": "second_stage", "factor": 0.4},
    {"kind": "keep_last_rate"},
]


def spec_of(name: str, **arguments: object) -> ScheduleSpec:
    return _SPEC.validate_python({"name": name, **arguments})


def rates_of(
    schedule: dict[str, Any], steps: int, *, budget: dict[str, Any] | None, **changes: Any
) -> list[float]:
    optimizer = {"name": "adamw", "lr": BASE_LR}
    spec = make_spec(schedule=schedule, optimizer=optimizer, budget=budget, **changes)
    schedule = build_lr_schedule(spec)
    assert schedule is not None
    return [schedule.after(step) for step in range(steps)]


def extended(
    plan: dict[str, Any],
    *,
    schedule: dict[str, Any] = WSD,
    from_step: int,
    horizon: int = 4000,
    steps: int = 8000,
) -> list[float]:
    extension = {"from_step": from_step, "horizon": horizon, "plan": plan}
    return rates_of(schedule, steps, budget={"max_steps": steps}, schedule_extensions=[extension])


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_of_the_contract_can_be_built_and_has_the_library_s_defaults(name):
    made = rates_of({"name": name}, 30, budget={"max_steps": 30})
    assert made == named_rates(name, steps=30, base_lr=BASE_LR).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_contract_and_library_agree_on_what_needs_a_horizon(name):
    short, long = (named_rates(name, steps=steps)[:20] for steps in (20, 300))
    assert has_horizon(spec_of(name)) is not np.array_equal(short, long)


@pytest.mark.parametrize("budget", [None, {"max_steps": 5}])
def test_without_a_horizon_there_is_a_rate_for_any_step(budget):
    """Also beyond the budget, which may have been extended while the job trains."""
    rates = rates_of({"name": "sqrt"}, 10_000, budget=budget)
    assert rates[9_999] == pytest.approx(0.01 * BASE_LR)
    assert rates[0] == BASE_LR


def test_a_scheduled_run_takes_the_schedule_s_rates_and_says_so(tmp_path):
    schedule = {"name": "wsd", "cooldown_len": 0.5, "warmup_steps": 2}
    optimizer = {"name": "adamw", "lr": 0.01}
    brief = make_brief(schedule=schedule, optimizer=optimizer, budget={"max_steps": 8})
    bench = Bench(brief, tmp_path)
    bench.training.run()
    seen = [step.values["optimizer.lr"] for step in bench.reporter.steps]
    arguments = {name: value for name, value in schedule.items() if name != "name"}
    assert seen == named_rates("wsd", steps=8, base_lr=0.01, **arguments).tolist()


# ---- extensions ----------------------------------------------------------------------------------


def test_a_longer_cooldown_is_the_planner_s_where_it_is_planned_in_time():
    """The bound's own plan: 4000 steps made 8000 at the same rate, before any cooldown began."""
    family = Family("wsd", {"cooldown_len": 0.2})
    plan = extend_by_cooldown(family, finished=4000, horizon=8000)
    cooldown_len = plan.family.arguments["cooldown_len"]
    assert plan.shared_steps < 3201
    made = extended({"kind": "cooldown", "cooldown_len": cooldown_len}, from_step=plan.shared_steps)
    wanted = plan.family.at(8000, base_lr=BASE_LR)
    assert made == wanted.schedule[:8000].tolist()


def test_a_second_stage_is_the_planner_s_and_begins_where_the_old_cooldown_would():
    plan = extend_by_factor(Family("wsd", {"cooldown_len": 0.2}), finished=4000, horizon=8000)
    (factor,) = plan.family.arguments["factors"]
    made = extended({"kind": "second_stage", "factor": factor}, from_step=1000)
    assert made == pytest.approx(plan.family.at(8000, base_lr=BASE_LR).schedule[:8000])
    assert made[3200] == BASE_LR
    assert made[3201] == pytest.approx(factor * BASE_LR)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan["kind"])
@given(from_step=st.integers(0, 400))
def test_what_was_trained_keeps_its_rates(plan, from_step):
    """Otherwise a resumed attempt would live other steps than those that are in the curve."""
    before = rates_of(WSD, 400, budget={"max_steps": 400})
    made = extended(plan, from_step=from_step, horizon=400, steps=700)
    assert made[:from_step] == before[:from_step]
    assert len(made) == 700


def test_a_finished_job_goes_on_at_the_plan_s_rates_from_its_last_step():
    whole = named_rates("wsd", steps=8000, base_lr=BASE_LR, cooldown_len=0.5)
    made = extended(PLANS[0], from_step=4000)
    assert made[4000:] == whole[4000:].tolist()
    staged = extended(PLANS[1], from_step=4000)
    assert staged[4000:] == pytest.approx(
        0.4 * named_rates("wsd", steps=8000, base_lr=BASE_LR, cooldown_len=0.2)[4000:]
    )


def test_keeping_the_last_rate_goes_through_the_old_schedule_first():
    before = rates_of(WSD, 4000, budget={"max_steps": 4000})
    made = extended(PLANS[2], from_step=100)
    assert made == [*before, *[before[-1]] * 4000]


def test_a_cosine_has_a_second_stage_from_where_the_job_stands():
    made = extended(PLANS[1], schedule={"name": "cosine"}, from_step=10, horizon=100, steps=200)
    assert made[:10] == rates_of({"name": "cosine"}, 10, budget={"max_steps": 100})
    assert made[10:] == pytest.approx(0.4 * named_rates("cosine", steps=200, base_lr=BASE_LR)[10:])


def test_extensions_build_on_each_other():
    extensions = [
        {"from_step": 100, "horizon": 100, "plan": PLANS[1]},
        {"from_step": 200, "horizon": 200, "plan": PLANS[1]},
        {"from_step": 300, "horizon": 300, "plan": PLANS[2]},
    ]
    made = rates_of(WSD, 400, budget={"max_steps": 400}, schedule_extensions=extensions)
    assert made[100] == pytest.approx(0.4 * BASE_LR)
    assert made[200] == pytest.approx(0.16 * BASE_LR)
    assert set(made[300:]) == {made[299]}
