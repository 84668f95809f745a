"""Schedules have the shapes of the field's formulas, keep to their ends, and refuse nonsense."""

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.optim.schedules.schedules import (
    SCHEDULES,
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OneMinusSqrtSchedule,
    PiecewiseConstantSchedule,
    PolynomialBackwardSchedule,
    PolynomialCooldownSchedule,
    ScheduleBase,
    SqrtSchedule,
    WSDSchedule,
    compute_optimal_base,
    whole_steps,
)

STEPS = 103

#: Spelled out step by step, i = 0..n-1 of n steps at base rate 1.
FORMULAS: dict[str, tuple[ScheduleBase, Callable[[int, int], float]]] = {
    "constant": (ConstantSchedule(STEPS), lambda i, n: 1.0),
    "cosine": (
        CosineSchedule(0.1, STEPS),
        lambda i, n: 0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi * i / (n - 1))),
    ),
    "linear": (LinearSchedule(steps=STEPS), lambda i, n: (n - 1 - i) / (n - 1)),
    "one-minus-sqrt": (
        OneMinusSqrtSchedule(steps=STEPS),
        lambda i, n: 1 - math.sqrt(i / (n - 1)),
    ),
    "piecewise-constant": (
        PiecewiseConstantSchedule(STEPS, milestones=[10, 60], factors=[0.5, 3.0]),
        lambda i, n: 1.0 if i < 10 else 0.5 if i < 60 else 1.5,
    ),
    "polynomial-backward": (
        PolynomialBackwardSchedule(STEPS, alpha=2.5, final_lr=0.2),
        lambda i, n: 0.2 + 0.8 * ((n - 1 - i) / (n - 1)) ** 2.5,
    ),
    "polynomial-cooldown": (
        PolynomialCooldownSchedule(0.8, steps=STEPS, final_lr=0.01, cooldown_len=0.5),
        lambda i, n: (i + 1) ** -0.8 if i < 51 else 51**-0.8 + (i - 50) / 52 * (0.01 - 51**-0.8),
    ),
    "sqrt": (SqrtSchedule(steps=STEPS), lambda i, n: 1 / math.sqrt(i + 1)),
    "wsd": (
        WSDSchedule(0.1, STEPS, cooldown_len=0.2),
        lambda i, n: 1.0 if i < 82 else 1 - (i - 81) / 21 * 0.9,
    ),
    "wsd, 1-sqrt": (
        WSDSchedule(0.1, STEPS, cooldown_len=0.2, decay_type="sqrt"),
        lambda i, n: 1.0 if i < 82 else 0.1 + 0.9 * (1 - math.sqrt((i - 81) / 21)),
    ),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_a_schedule_is_its_formula(case):
    """Every class against the formula, written out for one step at a time."""
    schedule, formula = FORMULAS[case]
    expected = [formula(i, STEPS) for i in range(STEPS)]
    np.testing.assert_allclose(schedule.schedule, expected, rtol=1e-12, atol=1e-15)


@given(percent=st.integers(0, 100), hundreds=st.integers(1, 400))
def test_whole_percents_of_hundreds_of_steps_are_exact(percent: int, hundreds: int):
    """As floats, 0.29 of 100 and 0.57 of 100 are a little below 29 and 57."""
    expected = percent * hundreds
    assert whole_steps(percent / 100, 100 * hundreds) == expected
    schedule = WSDSchedule(steps=100 * hundreds, cooldown_len=percent / 100)
    assert schedule.cooldown_steps == min(expected, 100 * hundreds - 1)


@given(share=st.floats(0, 1), steps=st.integers(1, 10**9))
def test_a_share_of_steps_is_the_nearest_whole_number(share: float, steps: int):
    assert abs(Fraction(share) * steps - whole_steps(share, steps)) <= Fraction(1, 2) + Fraction(
        1, 10**6
    )


def test_every_schedule_is_known_by_its_name():
    """A class that is missing in the register could not be named in a job."""
    assert {case.partition(",")[0] for case in FORMULAS} == set(SCHEDULES)
    for name, schedule in SCHEDULES.items():
        assert schedule.name == name


def test_the_register_cannot_be_changed():
    """It is shared by all users of the process."""
    with pytest.raises(TypeError):
        SCHEDULES["other"] = WSDSchedule  # type: ignore[index]


def test_the_tail_of_a_cosine_keeps_its_digits():
    """Near its end 1 + cos loses them: at 1e-8 of the base rate, half."""
    rates = CosineSchedule(steps=100_001).schedule
    exact = (math.pi / 2 * 3 / 100_000) ** 2  # sin^2 of a tiny angle
    assert rates[-4] == pytest.approx(exact, rel=1e-8)
    assert rates[-1] == 0


def test_a_warmup_would_reach_the_base_rate_in_the_step_after_it():
    """No two steps at the base rate before the schedule begins."""
    schedule = CosineSchedule(steps=50, base_lr=2.0, warmup_kwargs={"steps": 4, "warmup_lr": 0.2})
    np.testing.assert_allclose(schedule.schedule[:5], [0.4, 0.8, 1.2, 1.6, 2.0])
    np.testing.assert_allclose(schedule.schedule[4:], 2 * CosineSchedule(steps=46).schedule)


def test_an_absolute_warmup_rises_evenly_up_to_the_base_rate():
    """The slope counts the start as a share too: no jump at the end of the warmup."""
    warmup = {"steps": 4, "warmup_lr": 0.2, "warmup_lr_absolute": True}
    rates = WSDSchedule(steps=50, base_lr=2.0, warmup_kwargs=warmup).schedule
    np.testing.assert_allclose(rates[:5], [0.2, 0.65, 1.1, 1.55, 2.0])


def test_milestones_count_from_the_start_of_the_job():
    """Warmup and cooldown cover the first and last steps and move nothing."""
    plain = PiecewiseConstantSchedule(20, milestones=[3, 9], factors=[0.5, 0.5]).schedule
    schedule = PiecewiseConstantSchedule(
        20,
        milestones=[3, 9],
        factors=[0.5, 0.5],
        warmup_kwargs={"steps": 5},
        cooldown_kwargs={"steps": 4},
    )
    np.testing.assert_array_equal(schedule.schedule[5:16], plain[5:16])


@pytest.mark.parametrize(
    ("warmup", "cooldown", "fitted"), [(0, 20, (0, 19)), (5, 15, (5, 14)), (20, 0, (19, 0))]
)
def test_parts_that_have_all_steps_leave_one_to_the_main_part(warmup, cooldown, fitted):
    """The cooldown gives a step, or else the warmup: linear decay begins at the base rate."""
    schedule = PiecewiseConstantSchedule(
        20, warmup_kwargs={"steps": warmup}, cooldown_kwargs={"steps": cooldown}
    )
    assert (schedule.warmup_steps, schedule.cooldown_steps) == fitted
    assert schedule.cooldown_start == 20 - fitted[1]
    assert schedule.schedule[fitted[0]] == 1
    assert len(schedule.schedule) == len(schedule) == 20


arguments = st.fixed_dictionaries(
    {},
    optional={
        "warmup_kwargs": st.fixed_dictionaries(
            {"steps": st.integers(0, 5), "warmup_lr": st.floats(1e-3, 1)}
        )
    },
)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("constant", {}),
        ("sqrt", {}),
        ("wsd", {"cooldown_len": 0.0}),
        ("polynomial-cooldown", {"alpha": 0.3}),
        ("piecewise-constant", {"milestones": [3, 40], "factors": [0.5, 2.0]}),
    ],
)
@given(steps=st.integers(6, 60), more=st.integers(0, 60), arguments=arguments)
def test_a_schedule_without_a_horizon_begins_like_every_longer_one(
    name, own, steps, more, arguments
):
    """That is what lets a run go on: what it did is right for any length."""
    short = SCHEDULES[name](steps=steps, **own, **arguments)
    long = SCHEDULES[name](steps=steps + more, **own, **arguments)
    assert not short.has_horizon
    np.testing.assert_array_equal(short.schedule, long.schedule[:steps])


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("cosine", {}),
        ("linear", {}),
        ("one-minus-sqrt", {}),
        ("polynomial-backward", {}),
        ("wsd", {"cooldown_len": 0.2}),
        ("sqrt", {"cooldown_len": 0.2}),
        ("piecewise-constant", {"cooldown_kwargs": {"steps": 3}}),
    ],
)
def test_a_schedule_with_a_horizon_begins_otherwise_than_a_longer_one(name, own):
    """The law above would be empty if ``has_horizon`` were always false."""
    short, long = (SCHEDULES[name](steps=steps, **own) for steps in (50, 90))
    assert short.has_horizon
    assert np.any(short.schedule != long.schedule[:50])


@given(base_lr=st.floats(3e-3, 10), other=st.floats(3e-3, 10), steps=st.integers(30, 200))
def test_absolute_ends_stay_when_the_base_rate_changes(base_lr, other, steps):
    """And a schedule that was changed is one that was made so."""
    warmup = {"steps": 4, "warmup_lr": 1e-3, "warmup_lr_absolute": True}

    def make(base: float) -> list[ScheduleBase]:
        ends: dict[str, Any] = {"final_lr": 3e-3, "final_lr_absolute": True}
        return [
            WSDSchedule(steps=steps, base_lr=base, warmup_kwargs=warmup, **ends),
            CosineSchedule(steps=steps, base_lr=base, warmup_kwargs=warmup, **ends),
        ]

    for schedule, wanted in zip(make(base_lr), make(other), strict=True):
        schedule.set_base_lr(other)
        np.testing.assert_array_equal(schedule.schedule, wanted.schedule)
        assert schedule.schedule[0] == pytest.approx(1e-3)
        assert schedule.schedule[-1] == pytest.approx(3e-3)
        assert schedule.schedule.max() == pytest.approx(max(other, 3e-3))


@pytest.mark.parametrize("name", SCHEDULES)
@given(base_lr=st.floats(1e-6, 1e3), steps=st.integers(2, 300))
def test_relative_rates_scale_with_the_base_rate(name, base_lr, steps):
    """Rates are finite, >= 0 and the base rate times the shape."""
    schedule = SCHEDULES[name](steps=steps, base_lr=base_lr)
    rates = schedule.schedule
    assert rates.dtype == np.float64
    assert rates.shape == (steps,)
    assert np.all((rates >= 0) & (rates <= base_lr))
    np.testing.assert_array_equal(rates, base_lr * schedule.shape)


def test_nothing_is_shared_between_schedules_or_with_arrays_given_out():
    """Neither default lists, nor arrays, nor the argument of ``compute_optimal_base``."""
    schedule = CosineSchedule(steps=11, base_lr=0.3)
    before = schedule.schedule
    schedule.schedule[:] = 7
    schedule.shape[:] = 7
    compute_optimal_base(schedule, G=1.0, D=1.0, T=10)
    np.testing.assert_array_equal(schedule.schedule, before)
    assert schedule.get_base_lr() == 0.3
    milestones, factors = [3], [0.5]
    piecewise = PiecewiseConstantSchedule(9, milestones=milestones, factors=factors)
    milestones.append(5)
    factors[0] = 0.1
    piecewise.set_base_lr(1.0)
    assert piecewise.schedule[-1] == 0.5


def test_a_refused_base_rate_changes_nothing():
    """A schedule is never left half changed."""
    schedule = CosineSchedule(0.1, 20, base_lr=1.0, final_lr_absolute=True)
    before = schedule.schedule
    with pytest.raises(ValueError, match=r"final_lr: expected 0 to 0\.05"):
        schedule.set_base_lr(0.05)
    assert schedule.get_base_lr() == 1.0
    np.testing.assert_array_equal(schedule.schedule, before)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no steps": (lambda: CosineSchedule(steps=0), "steps: expected at least 1"),
    "half a step": (lambda: CosineSchedule(steps=1.5), "steps: expected a whole number"),
    "negative base": (lambda: WSDSchedule(base_lr=-1.0), "base_lr"),
    "infinite base": (lambda: WSDSchedule(base_lr=math.inf), "base_lr"),
    "share above 1": (lambda: WSDSchedule(final_lr=1.5), "final_lr: expected 0 to 1"),
    "nan share": (lambda: CosineSchedule(final_lr=math.nan), "final_lr"),
    "end above the base": (
        lambda: WSDSchedule(final_lr=0.2, base_lr=0.1, final_lr_absolute=True),
        "final_lr: expected 0 to 0.1",
    ),
    "end above the main part": (
        lambda: SqrtSchedule(final_lr=0.5, steps=100, cooldown_len=0.2),
        "expected at most the last rate before the cooldown",
    ),
    "cooldown of 120 %": (lambda: WSDSchedule(cooldown_len=1.2), "cooldown_len"),
    "warmup and cooldown too long": (
        lambda: WSDSchedule(steps=10, cooldown_len=0.5, warmup_kwargs={"steps": 6}),
        r"at most 10 steps together, seen 6 \+ 5",
    ),
    "warmup from 0": (
        lambda: WSDSchedule(warmup_kwargs={"steps": 3, "warmup_lr": 0.0}),
        "warmup_lr: expected a finite number > 0",
    ),
    "unknown argument": (
        lambda: WSDSchedule(warmup_kwargs={"step": 3}),
        "warmup_kwargs: expected steps, warmup_lr, warmup_lr_absolute, seen 'step'",
    ),
    "unknown decay": (lambda: WSDSchedule(decay_type="cos"), "linear or sqrt, seen 'cos'"),
    "power 0": (lambda: PolynomialBackwardSchedule(alpha=0), "alpha"),
    "milestones not rising": (
        lambda: PiecewiseConstantSchedule(9, milestones=[5, 3], factors=[1, 1]),
        r"expected rising steps, seen \[5, 3\]",
    ),
    "a factor missing": (
        lambda: PiecewiseConstantSchedule(9, milestones=[5], factors=[]),
        "factors: expected 1, as milestones, seen 0",
    ),
    "factor 0": (
        lambda: PiecewiseConstantSchedule(9, milestones=[5], factors=[0.0]),
        "factors: expected a finite number > 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nonsense_is_refused_with_what_was_expected(case):
    """Upstream asserts, divides by zero or goes on; here each has its sentence."""
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T": None}, "T: expected whole numbers, one or a row, seen None"),
        ({"T": 0}, "T: expected 1 to 11, seen 0"),
        ({"T": 12}, "T: expected 1 to 11, seen 12"),
        ({"T": 5.0}, "T: expected whole numbers"),
        ({"T": 11}, "expected a rate > 0 at every horizon, seen 0 at step 11"),
        ({"grad_norms": np.ones(10)}, "grad_norms: expected 1 or 11 values, seen 10"),
        ({"grad_norms": math.nan}, "grad_norms: expected finite numbers >= 0, seen nan at step 1"),
        ({"D": 0.0}, "D: expected a finite number > 0"),
        ({"type": "best"}, "kind: expected one of refined, standard, seen 'best'"),
    ],
)
def test_a_rate_that_has_no_meaning_is_refused(arguments, message):
    """Instead of a name error, or of -8.8e10."""
    schedule = WSDSchedule(steps=11)
    with pytest.raises(ValueError, match=message):
        schedule.compute_rate(**{"grad_norms": 1.0, "D": 1.0, "T": 10, **arguments})


def test_the_best_base_of_a_schedule_with_an_absolute_end_is_refused():
    """Its shape changes with the base rate, so that the formula for the best one does not hold."""
    schedule = CosineSchedule(0.1, 20, final_lr_absolute=True)
    with pytest.raises(ValueError, match="relative to the base rate"):
        schedule.compute_optimal_base(1.0, 1.0, 19)
    assert schedule.compute_rate(1.0, 1.0, 19) > 0


@pytest.mark.parametrize("kind", ["refined", "standard"])
def test_a_row_of_horizons_gives_what_each_gives_alone(kind):
    """Also split, and in any order."""
    schedule = CosineSchedule(steps=31, base_lr=0.2)
    norms = np.linspace(2, 1, 31)
    several = [30, 1, 7]
    alone = [schedule.compute_rate(norms, 1.5, T, kind) for T in several]
    split = [schedule.compute_rate(norms, 1.5, T, kind, return_split=True) for T in several]
    np.testing.assert_allclose(schedule.compute_rate(norms, 1.5, several, kind), alone, rtol=1e-13)
    rows = schedule.compute_rate(norms, 1.5, np.array(several), kind, return_split=True)
    np.testing.assert_array_equal(np.array(rows).T, split)
    np.testing.assert_allclose(np.sum(rows, axis=0), alone, rtol=1e-13)
    assert isinstance(alone[0], float)


def test_drawing_needs_matplotlib_or_axes(monkeypatch):
    """The library itself does not install it; the error says so."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="expected matplotlib to be installed"):
        WSDSchedule().plot()


def test_a_drawing_has_the_rates():
    """On axes of its own, and on given ones."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    schedule = CosineSchedule(steps=30)
    axes = schedule.plot()
    assert schedule.plot(axes) is axes
    for line in axes.get_lines():
        np.testing.assert_array_equal(line.get_ydata(), schedule.schedule)
    assert len(axes.get_lines()) == 2
