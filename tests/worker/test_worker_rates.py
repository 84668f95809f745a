"""The learning rate of each step of a job with a schedule."""

import numpy as np
import pytest
from pydantic import TypeAdapter
from training_bench import Bench, make_brief

from optim.named_schedules import NAMES
from optim.named_schedules import rates as named_rates
from service.contract.schedules import ScheduleSpec, has_horizon
from worker.rates import Rates

_SPEC: TypeAdapter[ScheduleSpec] = TypeAdapter(ScheduleSpec)


def spec_of(name: str, **arguments: object) -> ScheduleSpec:
    return _SPEC.validate_python({"name": name, **arguments})


def rates_of(rates: Rates, steps: int) -> list[float]:
    return [rates.after(step) for step in range(steps)]


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_of_the_contract_can_be_built_and_has_the_library_s_defaults(name):
    made = rates_of(Rates(spec_of(name), base_lr=0.5, max_steps=30), 30)
    assert made == named_rates(name, steps=30, base_lr=0.5).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_contract_and_library_agree_on_what_needs_a_horizon(name):
    short, long = (named_rates(name, steps=steps)[:20] for steps in (20, 300))
    assert has_horizon(spec_of(name)) is not np.array_equal(short, long)


def test_without_a_horizon_there_is_a_rate_for_any_step():
    rates = Rates(spec_of("sqrt"), base_lr=1.0, max_steps=None)
    assert rates.after(9_999) == pytest.approx(0.01)
    assert rates.after(0) == 1.0


def test_a_scheduled_run_takes_the_schedule_s_rates_and_says_so(tmp_path):
    schedule = {"name": "wsd", "cooldown_len": 0.5, "warmup_steps": 2}
    optimizer = {"name": "adamw", "lr": 0.01}
    brief = make_brief(schedule=schedule, optimizer=optimizer, budget={"max_steps": 8})
    bench = Bench(brief, tmp_path)
    bench.training.run()
    seen = [step.values["optimizer.lr"] for step in bench.reporter.steps]
    arguments = {name: value for name, value in schedule.items() if name != "name"}
    assert seen == named_rates("wsd", steps=8, base_lr=0.01, **arguments).tolist()
