"""The schedule of the preconditioner: its table, its two timings, and what they remember."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadless.optim.soap.schedule import (
    Chance,
    Constant,
    Even,
    Timing,
    steps_between_updates,
    total_updates,
)

#: Steps, and the updates of HeavyBall's documentation until then.
TABLE = ((10, 10), (100, 99), (1000, 738), (10_000, 2168), (100_000, 4049), (1_000_000, 7245))


def updates_by(timing: Timing, num_steps: int) -> list[bool]:
    due, taken = 0.0, []
    for s in range(1, num_steps + 1):
        is_due, due = timing.is_due(s, due)
        taken.append(is_due)
    return taken


def test_the_even_timing_reproduces_the_table() -> None:
    taken = updates_by(Even(1 / 3, 9), TABLE[-1][0])
    assert [(n, sum(taken[:n])) for n, _ in TABLE] == list(TABLE)


def test_the_total_is_the_table() -> None:
    assert [(n, total_updates(n)) for n, _ in TABLE[:5]] == list(TABLE[:5])


def test_the_mean_distance_of_updates() -> None:
    assert [steps_between_updates(10**i) for i in range(1, 7)] == pytest.approx(
        [1.00005, 1.02601, 2.0, 14.31829, 100.22903, 513.0], abs=5e-6
    )
    assert steps_between_updates(0) == 1


def test_lots_drawn_as_heavyball_draws_them_give_its_counts() -> None:
    """Of 0.7.4, whose generator starts from this seed; its steps are counted from 0."""
    rng = random.Random(0x120983109)
    drawn = [rng.random() < 1 / steps_between_updates(s) for s in range(10_000)]
    assert [sum(drawn[:n]) for n in (10, 100, 1000, 10_000)] == [10, 100, 743, 2167]


def test_the_first_skip_is_late() -> None:
    """HeavyBall 3 skips step 2, where 1/f is 1 - 1e-9."""
    assert updates_by(Even(1 / 3, 9), 100).index(False) > 50


@settings(deadline=None)
@given(power=st.floats(0, 1), exponent=st.floats(0.5, 9), num_steps=st.integers(1, 300))
def test_the_even_timing_stays_within_one_of_its_mean(
    power: float, exponent: float, num_steps: int
) -> None:
    taken = updates_by(Even(power, exponent), num_steps)
    mean = 0.0
    for s, is_due in enumerate(taken, start=1):
        mean += 1 / steps_between_updates(s, power=power, exponent=exponent)
        assert abs(sum(taken[:s]) - mean) < 1, (s, is_due)


@settings(deadline=None)
@given(seed=st.integers(0, 2**40))
def test_chance_follows_the_schedule_and_only_its_seed(seed: int) -> None:
    timing = Chance(1 / 3, 9, seed)
    taken = updates_by(timing, 2000)
    assert updates_by(timing, 2000) == taken
    mean = sum(1 / steps_between_updates(s) for s in range(1, 2001))
    assert abs(sum(taken) - mean) < 6 * 2000**0.5 / 2


def test_seeds_draw_different_lots() -> None:
    assert updates_by(Chance(1 / 3, 9, 1), 2000) != updates_by(Chance(1 / 3, 9, 2), 2000)


@settings(deadline=None)
@given(every=st.integers(1, 20), num_steps=st.integers(0, 200))
def test_the_constant_timing(every: int, num_steps: int) -> None:
    assert sum(updates_by(Constant(every), num_steps)) == num_steps // every
