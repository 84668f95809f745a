"""Ways to make a run longer: the paper's table, and what each kind of run is offered."""

import numpy as np
import pytest

from roadless.optim.planning import Family, best_base
from roadless.optim.schedules.by_name import rates
from roadless.service.contract.job.schedules import (
    ConstantScheduleSpec,
    CosineScheduleSpec,
    LinearScheduleSpec,
    PolynomialCooldownScheduleSpec,
    SqrtScheduleSpec,
    WSDScheduleSpec,
)
from roadless.service.theory import advice as module
from roadless.service.theory.advice import Extension, advice
from roadless.service.theory.averaging import Averaging
from roadless.service.theory.steps import Steps, blocks_of

T0 = 4000
WSD = WSDScheduleSpec(name="wsd")


def extension(schedule, *, to_step, made_for=T0, averaging=None, eta=None):
    """Of a run at the best base rate for G = D = 1."""
    if eta is None:
        base = best_base(Family("wsd", {"cooldown_len": 0.2}), horizon=T0).base_lr
        arguments = schedule.model_dump(exclude={"name"}) if schedule else {}
        name = schedule.name if schedule else "constant"
        eta = rates(name, steps=made_for, base_lr=base, **arguments)
    return Extension(
        blocks=blocks_of([Steps(eta, np.ones(eta.size))], num_steps=eta.size),
        averaging=averaging,
        schedule=schedule,
        made_for=made_for,
        to_step=to_step,
        grad_norm=1.0,
        distance=1.0,
    )


def ways_of(*arguments, **named):
    return {way.name: way for way in extension(*arguments, **named).ways()}


@pytest.mark.parametrize(
    ("times", "cooldown_len", "factor"),
    [
        (1.5, 0.4375, 0.625),
        (2, 0.634, 0.525),
        (2.5, 0.775, 0.475),
        (3, 0.8875, 0.425),
        (3.5, 0.972, 0.40),
        (4, 1.0, 0.375),
    ],
)
def test_wsd_is_bent_as_in_the_paper(times, cooldown_len, factor):
    """arXiv 2501.18965, section 5: 4000 steps with a cooldown of 0.2, at the rate they had."""
    ways = ways_of(WSD, to_step=int(times * T0))
    assert ways["cooldown"].cooldown_len == pytest.approx(cooldown_len, abs=5e-4)
    assert ways["second_stage"].factor == pytest.approx(factor)


def test_the_bounds_of_a_run_twice_as_long_are_the_papers():
    ways = ways_of(WSD, to_step=2 * T0)
    seen = {name: round(way.bound, 6) for name, way in ways.items()}
    assert seen == {
        "tuned": 0.022372,
        "cooldown": 0.022518,
        "second_stage": 0.02309,
        "stretch": 0.025628,
    }
    assert ways["second_stage"].starts_at == 3201
    assert ways["stretch"].starts_at == 3200


def test_a_longer_run_is_planned_to_scale(monkeypatch):
    """As in full, but for the steps that one step of the plan stands for."""
    exact = ways_of(WSD, to_step=2 * T0)
    monkeypatch.setattr(module, "MAX_PLANNED_STEPS", 1000)
    monkeypatch.setattr(module, "MAX_EXTENSION_BLOCKS", 2000)
    scaled = ways_of(WSD, to_step=2 * T0)
    for name, way in exact.items():
        assert scaled[name].bound == pytest.approx(way.bound, rel=0.01)
        assert scaled[name].starts_at == pytest.approx(way.starts_at, abs=16)
    assert scaled["cooldown"].cooldown_len == exact["cooldown"].cooldown_len


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_powers_of_the_step_are_stretched_in_steps(monkeypatch, alpha):
    """Not in those of the plan: a rate of 1 / sqrt(t) stays the one of step t."""
    schedule = PolynomialCooldownScheduleSpec(
        name="polynomial_cooldown", alpha=alpha, cooldown_len=0.2
    )
    if alpha == 0.5:
        schedule = SqrtScheduleSpec(name="sqrt", cooldown_len=0.2)
    exact = ways_of(schedule, to_step=2 * T0)["stretch"]
    monkeypatch.setattr(module, "MAX_PLANNED_STEPS", 2000)
    scaled = ways_of(schedule, to_step=2 * T0)["stretch"]
    assert scaled.bound == pytest.approx(exact.bound, rel=0.02)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_schedule_that_knows_its_end_at_once_has_to_start_anew(name):
    spec = {"cosine": CosineScheduleSpec, "linear": LinearScheduleSpec}[name](name=name)
    ways = ways_of(spec, to_step=2 * T0)
    assert {way: one.starts_at for way, one in ways.items()} == {"stretch": 0, "tuned": 0}
    assert "start over" in advice(None)


def test_a_run_in_the_middle_goes_on_from_where_it_is():
    """Its cooldown has not begun, so every way shares all of its steps."""
    base = best_base(Family("wsd", {"cooldown_len": 0.2}), horizon=T0).base_lr
    eta = rates("wsd", steps=T0, base_lr=base)[:1000]
    ways = ways_of(WSD, to_step=2 * T0, eta=eta)
    assert {ways[name].starts_at for name in ("cooldown", "second_stage", "stretch")} == {1000}
    full = ways_of(WSD, to_step=2 * T0)
    assert {name: way.bound for name, way in ways.items()} == pytest.approx(
        {name: way.bound for name, way in full.items()}
    )


def test_a_constant_rate_may_go_on_or_cool_down():
    """The cooldown takes none of the steps that are done, and is the better way."""
    for schedule in (None, ConstantScheduleSpec(name="constant")):
        ways = ways_of(schedule, to_step=2 * T0)
        assert set(ways) == {"go_on", "cooldown", "tuned"}
        assert ways["cooldown"].starts_at == ways["go_on"].starts_at == T0
        assert ways["cooldown"].bound < ways["go_on"].bound
        assert 0 < ways["cooldown"].cooldown_len <= 0.5
        assert f"step {T0} or earlier" in advice(ways["cooldown"])


def test_an_average_goes_on_as_it_is():
    """At most by the square root of the steps from the best: the rate was tuned for fewer."""
    averaging = Averaging(r=0, power=2)
    ways = ways_of(None, to_step=2 * T0, averaging=averaging)
    assert set(ways) == {"go_on", "tuned"}
    assert ways["tuned"].bound == pytest.approx(1 / np.sqrt(2 * T0), rel=1e-3)
    assert ways["tuned"].bound <= ways["go_on"].bound <= 1.1 * ways["tuned"].bound


def test_ways_are_sorted_by_their_bounds_and_end_where_they_should():
    found = extension(WSD, to_step=9000).ways()
    assert [way.bound for way in found] == sorted(way.bound for way in found)
    for way in found:
        assert way.blocks.num_steps == 9000
        assert way.terms(np.array([9000])).at(1.0) == pytest.approx([way.bound])
        assert str(way.starts_at) in advice(way) or way.name in ("go_on", "tuned")
