"""The averaging arithmetic: weights, warmup, and what c means."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.optim.averaging import Counters, Pace, advance

PLAIN: dict[str, Any] = {"warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0}


def paces(lrs: list[float], **settings: Any) -> list[Pace]:
    counters, taken = Counters(), []
    for lr in lrs:
        counters, pace = advance(counters, lr=lr, **(PLAIN | settings))
        taken.append(pace)
    return taken


@given(num_steps=st.integers(1, 50), lr=st.floats(1e-6, 10))
def test_a_constant_learning_rate_gives_the_plain_mean(num_steps: int, lr: float) -> None:
    assert [pace.c for pace in paces([lr] * num_steps)] == pytest.approx(
        [1 / t for t in range(1, num_steps + 1)], rel=1e-12
    )


@given(
    lrs=st.lists(st.floats(1e-3, 10), min_size=1, max_size=20),
    warmup_steps=st.integers(0, 10),
    r=st.floats(0, 3),
    power=st.floats(0, 3),
)
def test_folding_c_weighs_every_z_by_its_share_of_the_weights(
    lrs: list[float], warmup_steps: int, r: float, power: float
) -> None:
    """The x of the recursion is the mean of z weighted by t^r * (largest lr so far)^power."""
    taken = paces(lrs, warmup_steps=warmup_steps, r=r, weight_lr_power=power)
    shares: list[float] = []
    for pace in taken:
        shares = [share * (1 - pace.c) for share in shares] + [pace.c]
    gammas = [lr * min(1, t / max(warmup_steps, 1)) for t, lr in enumerate(lrs, start=1)]
    weights = [t**r * max(gammas[:t]) ** power for t in range(1, len(lrs) + 1)]
    assert shares == pytest.approx([w / sum(weights) for w in weights], rel=1e-9)
    assert [pace.lr for pace in taken] == pytest.approx(gammas, rel=1e-12)


def test_warmup_is_linear_and_starts_above_zero() -> None:
    assert [pace.lr for pace in paces([1.0] * 6, warmup_steps=4)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_warmup_of_one_step_is_none() -> None:
    assert paces([0.3] * 3, warmup_steps=1) == paces([0.3] * 3, warmup_steps=0)


def test_lowering_the_learning_rate_does_not_lower_the_weight() -> None:
    assert [pace.c for pace in paces([1.0, 0.1, 0.0])] == pytest.approx([1, 1 / 2, 1 / 3])


def test_without_weight_x_rests() -> None:
    """With a learning rate of 0 there is no weight to divide by: c is 0, not an error."""
    assert [pace.c for pace in paces([0.0, 0.0, 0.5])] == [0.0, 0.0, 1.0]


def test_counters_go_on_where_they_stopped() -> None:
    counters, _ = advance(Counters(), lr=0.5, **PLAIN)
    assert counters == Counters(k=1, weight_sum=0.25, lr_max=0.5)
    assert advance(replace(counters), lr=0.5, **PLAIN)[1] == Pace(t=2, lr=0.5, c=0.5)


@pytest.mark.parametrize(
    ("settings", "t"),
    [
        ({"r": 100.0, "weight_lr_power": 0.0, "lr": 0.1}, 1300),
        ({"r": 200.0, "weight_lr_power": 2.0, "lr": 1.0}, 40),
        ({"r": 0.0, "weight_lr_power": 100.0, "lr": 1e-4}, 1),
    ],
)
def test_weights_that_leave_the_range_of_floats_are_refused(settings: dict, t: int) -> None:
    """Infinite ones would leave x where it is, and so would those that are 0, without a word."""
    counters = replace(Counters(), k=t - 1)
    with pytest.raises(ValueError, match=r"r, weight_lr_power: expected powers whose weights are"):
        advance(counters, warmup_steps=0, **settings)


def test_a_learning_rate_of_next_to_nothing_is_no_fault_of_the_powers() -> None:
    assert advance(Counters(), lr=1e-200, warmup_steps=0, r=0.0, weight_lr_power=2.0)[1].c == 0.0
