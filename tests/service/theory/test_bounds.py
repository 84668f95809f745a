"""Terms at several horizons: those of ``roadless.optim.theory.bounds``, and none where there is no
bound."""

import numpy as np
import pytest

from roadless.optim.theory.bounds import bounds_at, schedule_free_bounds_at
from roadless.service.theory.averaging import Averaging
from roadless.service.theory.bounds import terms_at
from roadless.service.theory.steps import MAX_BLOCKS, Steps, blocks_of

N = 300
ETA = 0.1 * np.minimum(1, np.arange(1, N + 1) / 50)
NORMS = 1 + np.cos(np.arange(N)) ** 2
HORIZONS = [1, 2, 57, 299, 300]


def blocks(eta=ETA, norms=NORMS):
    return blocks_of([Steps(eta, norms)], num_steps=len(eta))


def test_the_last_iterate_has_the_refined_bound():
    seen = terms_at(blocks(), HORIZONS, averaging=None).at(3.0)
    assert seen == pytest.approx(bounds_at(ETA, NORMS, D=3.0, horizons=HORIZONS))


@pytest.mark.parametrize("averaging", [Averaging(0, 2), Averaging(2, 1), Averaging(0, 0)])
def test_an_average_has_the_bound_of_its_own_weights(averaging):
    seen = terms_at(blocks(), HORIZONS, averaging=averaging)
    exact = schedule_free_bounds_at(
        ETA, NORMS, D=3.0, r=averaging.r, weight_lr_power=averaging.power
    )
    assert seen.at(3.0) == pytest.approx(exact[np.array(HORIZONS) - 1])
    assert not seen.last.any()


def test_steps_that_the_average_skips_are_not_in_its_bound():
    """It begins after them, and has none before."""
    seen = terms_at(blocks(), HORIZONS, averaging=Averaging(0, 2, skipped=50)).at(3.0)
    exact = schedule_free_bounds_at(ETA[50:], NORMS[50:], D=3.0)
    assert np.isnan(seen[:2]).all()
    # Bounds are read from a line of T * bound, and T counts the skipped steps.
    assert seen[2:] == pytest.approx(exact[[6, 248, 249]])


def test_an_average_without_a_rate_at_first_begins_with_the_first_one():
    """As RAdam's silent steps; a later rate of 0 ends what is bounded."""
    eta = ETA.copy()
    eta[:4] = 0
    eta[200:] = 0
    seen = terms_at(blocks(eta), [4, 5, 200, 201], averaging=Averaging(0, 2)).at(3.0)
    exact = schedule_free_bounds_at(eta[4:200], NORMS[4:200], D=3.0)
    assert np.isnan(seen[[0, 3]]).all()
    assert seen[1:3] == pytest.approx(exact[[0, -1]])


def test_no_rate_at_all_has_no_bound():
    nothing = blocks(np.zeros(N))
    for averaging in (None, Averaging(0, 2), Averaging(0, 2, skipped=10**9)):
        assert np.isnan(terms_at(nothing, HORIZONS, averaging=averaging).distance).all()


def test_a_last_rate_of_zero_has_no_bound_for_the_last_iterate():
    eta = ETA.copy()
    eta[-1] = 0
    seen = terms_at(blocks(eta), [299, 300], averaging=None).at(1.0)
    assert np.isnan(seen).tolist() == [False, True]


@pytest.mark.parametrize("horizon", [61_003, 100_000, 100_001])
def test_the_bound_of_a_long_average_is_near_the_exact_one(horizon):
    num_steps = 100_001
    eta = 0.01 * np.minimum(1, np.arange(1, num_steps + 1) / 5000)
    norms = 1 + 3 * np.exp(-np.arange(num_steps) / 20_000)
    long = blocks(eta, norms)
    assert long.eta.size <= MAX_BLOCKS < num_steps
    (seen,) = terms_at(long, [horizon], averaging=Averaging(0, 2)).at(3.0)
    exact = schedule_free_bounds_at(eta[:horizon], norms[:horizon], D=3.0)[-1]
    assert seen == pytest.approx(exact, rel=1e-3)
