"""Schedules by name: the rates that a job of so many steps takes."""

import numpy as np
import pytest

from roadless.optim.schedules.by_name import NAMES, named_schedule, rates

HORIZON_FREE = ("constant", "sqrt", "piecewise_constant", "polynomial_cooldown")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_a_positive_rate_for_every_step(name):
    made = rates(name, steps=50, base_lr=0.3)
    assert made.shape == (50,)
    assert made.dtype == np.float64
    assert (made > 0).all()
    assert made[0] == pytest.approx(0.3)


@pytest.mark.parametrize("name", NAMES)
def test_a_warmup_rises_to_the_full_rate(name):
    made = rates(name, steps=50, base_lr=0.3, warmup_steps=10)
    assert made[0] == pytest.approx(0.3e-10)
    assert made[:11].max() == made[10] == pytest.approx(0.3)
    assert (np.diff(made[:11]) > 0).all()


@pytest.mark.parametrize("name", HORIZON_FREE)
def test_without_a_horizon_a_longer_run_begins_with_the_shorter_one(name):
    assert np.array_equal(rates(name, steps=40), rates(name, steps=900)[:40])
    assert not named_schedule(name, steps=40).has_horizon


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(HORIZON_FREE)))
def test_with_a_horizon_it_does_not(name):
    assert not np.array_equal(rates(name, steps=40), rates(name, steps=900)[:40])
    assert named_schedule(name, steps=40).has_horizon


def test_linear_decay_takes_its_last_step_before_zero():
    assert rates("linear", steps=4) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"among constant, wsd.*saw 'triangle'"):
        rates("triangle", steps=4)
