"""Plans are the papers' where they have numbers, and really the best of what was tried."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadless.optim.planning import (
    COOLDOWN_FRACTIONS,
    EXTENSION_FACTORS,
    EXTENSION_FRACTIONS,
    Assumptions,
    Family,
    best_base,
    best_cooldown,
    cooldown_curve,
    extend_by_cooldown,
    extend_by_factor,
    implied_distance,
    plan_at,
    transfer_base,
)
from roadless.optim.schedules.schedules import SCHEDULES
from roadless.optim.theory.bounds import bound

WSD = Family("wsd", {"cooldown_len": 0.2})
LINEAR = Family("linear")


# ---- the paper's numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longer", "fraction", "factor"),
    [
        (1.5, 0.4375, 0.625),
        (2.0, 0.634, 0.525),
        (2.5, 0.775, 0.475),
        (3.0, 0.8875, 0.425),
        (3.5, 0.972, 0.40),
        (4.0, 1.0, 0.375),
    ],
)
def test_the_extensions_of_4000_steps_are_the_measured_ones(longer, fraction, factor):
    """The table's cooldown fractions and second-stage factors, all of them."""
    horizon = int(4000 * longer)
    by_cooldown = extend_by_cooldown(WSD, finished=4000, horizon=horizon)
    assert by_cooldown.family.arguments["cooldown_len"] == pytest.approx(fraction, abs=5e-4)
    by_factor = extend_by_factor(WSD, finished=4000, horizon=horizon)
    assert by_factor.family.arguments["factors"] == [pytest.approx(factor, abs=1e-9)]


def test_the_ways_to_twice_the_length_have_the_measured_bounds():
    """Going on as before, a second stage, a longer cooldown, and linear decay from the start."""
    gamma = best_base(WSD, horizon=4000).base_lr
    bounds = [
        plan_at(WSD, horizon=8000, base_lr=gamma).bound,
        extend_by_factor(WSD, finished=4000, horizon=8000).bound,
        extend_by_cooldown(WSD, finished=4000, horizon=8000).bound,
        best_base(LINEAR, horizon=8000).bound,
    ]
    expected = ["0.025628", "0.02309", "0.022518", "0.022372"]
    assert [f"{b:.6f}" for b in bounds] == [f"{float(e):.6f}" for e in expected]


def test_the_best_cooldown_is_all_of_the_run_and_the_curve_is_flat_before():
    """Linear decay is the optimum; 60 percent come within one."""
    curve = cooldown_curve(horizon=400)
    assert np.all(np.diff(curve.bounds) < 0)
    assert curve.best().family.arguments["cooldown_len"] == 1.0
    assert best_cooldown(horizon=400, slack=0.01).family.arguments["cooldown_len"] == 0.59


def test_a_rate_goes_from_wsd_to_linear_decay_at_twice_itself():
    """The rule of thumb behind it: 1.95 at 1600 steps."""
    lr = transfer_base(0.001, source=WSD, source_horizon=1600, target=LINEAR, target_horizon=1600)
    assert round(lr / 0.001, 3) == 1.947


# ---- laws ----------------------------------------------------------------------------------------


@given(name=st.sampled_from(sorted(SCHEDULES)), horizon=st.integers(2, 300), D=st.floats(0.01, 100))
@settings(deadline=None)
def test_the_best_plan_is_the_bound_of_its_rates(name, horizon, D):
    """A plan's figures belong to the rates that it gives, and none nearby are better."""
    family, assuming = Family(name), Assumptions(grad_norms=2.0, D=D)
    plan = best_base(family, horizon=horizon, assuming=assuming)
    assert len(plan.rates) == horizon
    assert plan.bound == pytest.approx(bound(plan.rates, 2.0, D=D), rel=1e-12)
    assert (plan.base_lr, plan.bound) == pytest.approx((plan.best_base_lr, plan.best_bound))
    other = plan_at(family, horizon=horizon, base_lr=plan.base_lr * 1.2, assuming=assuming)
    assert other.bound > plan.bound
    assert other.best_bound == plan.best_bound


@given(lr=st.floats(1e-5, 10), horizon=st.integers(5, 300), D=st.floats(0.01, 100))
@settings(deadline=None)
def test_a_transfer_and_back_changes_nothing(lr, horizon, D):
    """And the distance assumed does not matter."""
    there = transfer_base(lr, source=WSD, source_horizon=50, target=LINEAR, target_horizon=horizon)
    back = transfer_base(
        there,
        source=LINEAR,
        source_horizon=horizon,
        target=WSD,
        target_horizon=50,
        assuming=Assumptions(D=D),
    )
    assert back == pytest.approx(lr, rel=1e-12)


@given(lr=st.floats(1e-5, 10), G=st.floats(0.01, 100))
@settings(deadline=None)
def test_the_implied_distance_makes_the_tuned_rate_the_best(lr, G):
    """Whatever was assumed before."""
    D = implied_distance(WSD, horizon=100, base_lr=lr, assuming=Assumptions(grad_norms=G, D=77.0))
    plan = best_base(WSD, horizon=100, assuming=Assumptions(grad_norms=G, D=D))
    assert plan.base_lr == pytest.approx(lr, rel=1e-12)


@given(finished=st.integers(20, 400), longer=st.floats(1.1, 4.0))
@settings(max_examples=20, deadline=None)
def test_an_extension_begins_with_the_rates_that_were_run(finished, longer):
    """Up to ``shared_steps`` and no further; a second stage needs no state from before it."""
    horizon = int(finished * longer) + 1
    old = best_base(WSD, horizon=finished)
    for extend in (extend_by_cooldown, extend_by_factor):
        plan = extend(WSD, finished=finished, horizon=horizon)
        assert plan.base_lr == old.base_lr
        n = plan.shared_steps
        np.testing.assert_array_equal(plan.rates[:n], old.rates[:n])
        assert n == finished or plan.rates[n] != old.rates[n]
        assert plan.horizon == len(plan.rates) == horizon
    assert n >= old.schedule.cooldown_start


def test_an_extension_s_choice_is_the_nearest_of_those_tried():
    """By its best base rate; with few to try, the choice is among them."""
    gamma = best_base(WSD, horizon=100).base_lr
    tried = [0.3, 0.5, 0.9]
    plan = extend_by_cooldown(WSD, finished=100, horizon=200, fractions=tried)
    away = {
        c: abs(best_base(Family("wsd", {"cooldown_len": c}), horizon=200).base_lr - gamma)
        for c in tried
    }
    assert plan.family.arguments["cooldown_len"] == min(away, key=lambda c: away[c])


def test_a_sqrt_run_is_extended_by_its_cooldown_too():
    """Its best base rate hardly depends on the horizon: the same cooldown does."""
    sqrt = Family("sqrt", {"cooldown_len": 0.2})
    fractions = [round(0.1 + n * 0.05, 2) for n in range(13)]
    plan = extend_by_cooldown(sqrt, finished=400, horizon=800, fractions=fractions)
    assert plan.family.name == "sqrt"
    assert plan.family.arguments["cooldown_len"] in fractions
    assert plan.base_lr == pytest.approx(plan.best_base_lr, rel=0.02)
    assert plan.shared_steps > 0


def test_a_warmup_is_kept_in_an_extension():
    """It is part of the run that was done."""
    warm = Family("wsd", {"cooldown_len": 0.2, "warmup_kwargs": {"steps": 10}})
    for extend in (extend_by_cooldown, extend_by_factor):
        plan = extend(warm, finished=100, horizon=150)
        assert plan.schedule.warmup_steps == 10
        assert plan.shared_steps > 10


def test_norms_of_a_longer_run_serve_every_horizon():
    """The first ones are taken; falling norms want higher rates than constant ones."""
    norms = 1 / np.sqrt(np.arange(1, 401))
    falling = best_base(WSD, horizon=200, assuming=Assumptions(grad_norms=norms))
    constant = best_base(WSD, horizon=200)
    assert falling.base_lr > 2 * constant.base_lr
    with pytest.raises(ValueError, match="grad_norms: expected 1 or 401 values, seen 400"):
        best_base(WSD, horizon=401, assuming=Assumptions(grad_norms=norms))


def test_a_kept_rate_wants_another_cooldown_than_a_tuned_one():
    """A third of linear decay's best rate has no time to cool down, and is worse for it."""
    gamma = best_base(LINEAR, horizon=400).base_lr
    plan = best_cooldown(horizon=400, base_lr=gamma / 3)
    assert plan.base_lr == gamma / 3
    assert plan.family.arguments["cooldown_len"] < 0.25
    assert plan.bound > 1.15 * best_cooldown(horizon=400).bound


def test_a_plan_can_be_sent():
    """Everything in it is a number, a text, a list or a mapping."""
    plan = extend_by_factor(WSD, finished=40, horizon=80)
    sent = json.loads(json.dumps(asdict(plan)))
    again = Family(**sent["family"]).at(sent["horizon"], base_lr=sent["base_lr"])
    np.testing.assert_array_equal(again.schedule, plan.schedule.schedule)


@pytest.mark.parametrize("tried", [COOLDOWN_FRACTIONS, EXTENSION_FRACTIONS, EXTENSION_FACTORS])
def test_what_is_tried_rises_up_to_1(tried):
    """The grids are bounded and sorted."""
    assert list(tried) == sorted(set(tried))
    assert 0 < tried[0] < tried[-1] == 1.0
    assert len(tried) <= 100


def test_planning_loads_neither_torch_nor_what_draws():
    """The service imports all of this, and must stay small."""
    code = "import roadless.optim.planning, roadless.optim.theory.fitting, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "numpy" in loaded
    assert loaded & {"torch", "scipy", "pandas", "matplotlib"} == set()


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Family("triangle").at(5), "schedule: expected constant, .*, seen 'triangle'"),
        (lambda: Family("wsd", {"cooldown": 1}).at(5), "arguments of wsd: .*'cooldown'"),
        (lambda: WSD.at(0), "horizon: expected at least 1, seen 0"),
        (lambda: plan_at(WSD, horizon=5, base_lr=0.0), "base_lr: expected a finite number > 0"),
        (
            lambda: extend_by_cooldown(WSD, finished=100, horizon=100),
            "horizon: expected more than the 100 finished, seen 100",
        ),
        (
            lambda: extend_by_cooldown(LINEAR, finished=10, horizon=100),
            "arguments: expected a cooldown_len",
        ),
        (
            lambda: extend_by_factor(Family("cosine"), finished=10, horizon=100),
            "family: expected wsd with a cooldown_len, seen .*cosine",
        ),
        (
            lambda: extend_by_cooldown(WSD, finished=10, horizon=100, fractions=[]),
            "trials: expected fractions or factors that fit, seen none",
        ),
        (
            lambda: cooldown_curve(horizon=10, fractions=[0.5, 0.1]),
            r"fractions: expected rising shares in \(0, 1\], seen \(0\.5, 0\.1\)",
        ),
        (
            lambda: transfer_base(
                -1.0, source=WSD, source_horizon=5, target=LINEAR, target_horizon=5
            ),
            "base_lr: expected a finite number > 0",
        ),
    ],
)
def test_a_question_without_an_answer_is_refused(make, message):
    """Each with what was expected and what was seen."""
    with pytest.raises(ValueError, match=message):
        make()
