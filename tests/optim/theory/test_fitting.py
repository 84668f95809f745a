"""Fits find what made the losses, forgive outliers if asked to, and refuse what tells nothing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadless.optim.schedules.schedules import WSDSchedule
from roadless.optim.theory.fitting import HUBER_MU, METHODS, DistanceFit, fit_distance, fit_losses

BOUNDS = np.geomspace(1, 0.02, 40)


def misfit(C: float, M: float, bounds: np.ndarray, losses: np.ndarray) -> float:
    """Mean Huber loss of the log residuals, written on its own."""
    r = [abs(math.log((C + M * b) / y)) for b, y in zip(bounds, losses, strict=True)]
    return math.fsum(x**2 / 2 if x <= HUBER_MU else HUBER_MU * x - HUBER_MU**2 / 2 for x in r)


@pytest.mark.parametrize("method", METHODS)
@given(C=st.floats(0.1, 10), M=st.floats(0.1, 10), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(deadline=None)
def test_losses_without_noise_give_back_their_coefficients(method, C, M, scale):
    """Whatever the units of the bound."""
    fit = fit_losses(BOUNDS * scale, C + M * BOUNDS, method=method)
    assert pytest.approx(C, rel=1e-6) == fit.C
    assert fit.M * scale == pytest.approx(M, rel=1e-6)
    assert fit.r2 == pytest.approx(1.0)
    assert fit.median_relative_error < 1e-6
    assert (fit.n, fit.method) == (40, method)
    np.testing.assert_allclose(fit.predict(BOUNDS * scale), C + M * BOUNDS, rtol=1e-6)


def test_least_squares_is_the_line_of_numpy():
    """Where M is not at its limit."""
    losses = 3 + 2 * BOUNDS + np.random.default_rng(0).normal(0, 0.05, len(BOUNDS))
    fit = fit_losses(BOUNDS, losses)
    assert pytest.approx(tuple(np.polyfit(BOUNDS, losses, 1)), rel=1e-10) == (fit.M, fit.C)
    residuals = losses - fit.predict(BOUNDS)
    assert fit.r2 == pytest.approx(1 - residuals.var() / losses.var(), rel=1e-12)
    expected = np.median(np.abs(residuals) / losses)
    assert fit.median_relative_error == pytest.approx(expected, rel=1e-12)


@given(noise=st.sampled_from([3e-4, 3e-3, 0.1]), seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_no_line_nearby_has_a_smaller_huber_loss(noise, seed):
    """The robust fit is at a minimum, where noise is squared as where it counts by its size."""
    random = np.random.default_rng(seed)
    losses = (2.5 + 0.8 * BOUNDS) * np.exp(random.normal(0, noise, len(BOUNDS)))
    fit = fit_losses(BOUNDS, losses, method="huber")
    here = misfit(fit.C, fit.M, BOUNDS, losses)
    for step in (1e-4, 1e-2):
        for dC, dM in ((step, 0), (-step, 0), (0, step), (0, -step), (step, -step), (-step, step)):
            if fit.M + dM >= 0:
                near = misfit(fit.C + dC, fit.M + dM, BOUNDS, losses)
                assert near >= here * (1 - 1e-4)


def test_outliers_move_least_squares_but_not_huber():
    """Three spikes among forty points."""
    losses = 3 + 2 * BOUNDS
    losses[[5, 20, 33]] *= 2
    robust = fit_losses(BOUNDS, losses, method="huber")
    assert pytest.approx((3, 2), rel=1e-3) == (robust.C, robust.M)
    assert abs(fit_losses(BOUNDS, losses).C - 3) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_losses_that_rise_as_the_bound_falls_leave_a_constant(method):
    """M is never below 0: a bound that predicts the opposite predicts nothing."""
    fit = fit_losses(BOUNDS, 3 - BOUNDS, method=method)
    assert fit.M == 0
    middle = {"least-squares": np.mean, "huber": np.median}[method](3 - BOUNDS)
    assert pytest.approx(middle, rel=0.01) == fit.C
    assert fit.r2 <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_a_steep_start_does_not_stop_the_robust_fit(method):
    """Least squares would predict losses below 0 at the end, of which there is no log."""
    bounds = np.array([100.0, 10.0, 1.0, 0.1, 0.01])
    losses = np.array([1000.0, 9.0, 1.0, 0.1, 0.01])
    fit = fit_losses(bounds, losses, method=method)
    assert fit.M > 0
    if method == "huber":
        assert fit.predict(bounds).min() > 0
        assert fit.median_relative_error < 0.02


def test_equal_losses_are_explained_by_a_constant():
    """There is nothing to explain: r2 is 1 and not a division by zero."""
    fit = fit_losses([3.0, 2.0, 1.0], [0.7, 0.7, 0.7])
    assert (fit.C, fit.M, fit.r2) == (pytest.approx(0.7), pytest.approx(0, abs=1e-12), 1.0)


def test_losses_of_zero_have_no_relative_error_when_they_are_met():
    """And an infinite one otherwise."""
    assert fit_losses([3.0, 2.0, 1.0], [0.0, 0.0, 0.0]).median_relative_error == 0
    assert fit_losses([1.0, 0.9, 0.1], [0.0, 0.0, 1.0]).median_relative_error == math.inf


# ---- distance ------------------------------------------------------------------------------------


def terms(num_steps: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Both parts of the bound along a run, at D = 1."""
    schedule = WSDSchedule(steps=num_steps + 1, base_lr=0.02)
    steps = np.arange(10, num_steps + 1, 10)
    t1, t2, t3 = schedule.compute_rate(1.0, 1.0, steps, return_split=True)
    return t1, t2 + t3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("D", [0.05, 1.0, 20.0])
def test_losses_give_back_the_distance_that_made_them(method, D):
    """With both coefficients, from the shape of the curve alone."""
    u, v = terms()
    found = fit_distance(u, v, 2.5 + 1.3 * (D**2 * u + v), method=method)
    assert pytest.approx(D, rel=1e-4) == found.D
    assert pytest.approx((2.5, 1.3), rel=1e-4) == (found.fit.C, found.fit.M)
    assert not found.is_at_edge


def test_no_other_distance_fits_better():
    """With noise, against a finer grid."""
    u, v = terms()
    noise = np.random.default_rng(1).normal(0, 0.01, len(u))
    losses = 2.5 + 1.3 * (0.3**2 * u + v) + noise
    found = fit_distance(u, v, losses)
    others = [fit_losses(D**2 * u + v, losses).r2 for D in np.geomspace(0.01, 10, 500)]
    assert found.fit.r2 >= max(others) - 1e-12


def test_a_distance_that_the_losses_do_not_tell_is_marked():
    """Losses that only follow 1 / S want an infinite D."""
    u, v = terms()
    found: DistanceFit = fit_distance(u, v, 2.5 + 1.3 * u)
    assert found.is_at_edge
    assert found.fit.r2 > 0.999


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "losses", "arguments", "message"),
    [
        ([2.0, 1.0], [2.0, 1.0], {}, "points: expected at least 3, seen 2"),
        ([1.0, 1.0, 1.0], [3.0, 2.0, 1.0], {}, "bounds: expected some that differ, seen all 1"),
        ([3.0, 2.0, math.nan], [3.0, 2.0, 1.0], {}, "bounds: .* seen nan at step 3"),
        ([3.0, 2.0, 1.0], [3.0, math.inf, 1.0], {}, "losses: expected finite numbers, seen inf"),
        ([3.0, 2.0, 1.0], [3.0, 2.0], {}, r"losses: expected 3, one a bound, seen shape \(2,\)"),
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], {"method": "l1"}, "method: .* seen 'l1'"),
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], {"mu": 0.0}, "mu: expected a finite number > 0"),
        ([3.0, 2.0, 1.0], [3.0, 2.0, 0.0], {"method": "huber"}, "losses: expected numbers > 0"),
    ],
)
def test_points_that_tell_nothing_are_refused(bounds, losses, arguments, message):
    """Each with what was expected and what was seen."""
    with pytest.raises(ValueError, match=message):
        fit_losses(bounds, losses, **arguments)


def test_a_distance_without_a_scale_is_refused():
    """Without noise in the bound, D and M say the same."""
    u, v = terms()
    with pytest.raises(ValueError, match="both parts of the bound > 0"):
        fit_distance(u, np.zeros_like(v), 2 + u)
    with pytest.raises(ValueError, match="noise_terms: expected 40, one a point, seen 39"):
        fit_distance(u, v[1:], 2 + u)
