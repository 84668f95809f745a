"""How well the bound describes measured losses: loss ~ C + M bound, by least squares or robustly.

Takes the bounds of `optim/theory/bounds.py` at the steps where a loss was measured; numpy only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from roadless.optim.checks import require_above_zero
from roadless.optim.theory.rows import Floats, checked_row

Method = Literal["least-squares", "huber"]
METHODS: tuple[Method, ...] = ("least-squares", "huber")
#: Fewer points than this say nothing about two coefficients.
MIN_POINTS = 3
#: Residuals of log loss up to this size count quadratically, larger ones linearly.
HUBER_MU = 1e-3
#: Reweighted steps of the robust fit: if they do not suffice, which is rare, the misfit is within
#: 1e-4 of the minimum. And halvings of one such step.
MAX_ROUNDS = 200
MAX_HALVINGS = 30
#: The robust fit is done when a step changes no prediction by more than this share.
TOLERANCE = 1e-10
#: Distances tried: this far below and above the one where both parts of the bound are equal.
DISTANCE_SPAN = 1e3
DISTANCE_GRID = 61
#: Golden sections of the two grid cells around the best: leaves 1e-8 of them.
GOLDEN_ROUNDS = 40
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class LossFit:
    """loss ~ C + M bound, and how well it holds."""

    #: The loss that remains when the bound is 0.
    C: float
    #: Loss per unit of the bound, >= 0.
    M: float
    #: Share of the losses' variance that is explained, 1 where they have none; below 0 if their
    #: mean would do better.
    r2: float
    #: Median of |predicted - loss| / |loss|.
    median_relative_error: float
    #: Number of points.
    n: int
    method: Method

    def predict(self, bounds: ArrayLike) -> Floats:
        """Return the losses predicted for bounds."""
        return np.asarray(self.C + self.M * np.asarray(bounds, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class DistanceFit:
    """The distance D whose bounds describe the losses best."""

    D: float
    fit: LossFit
    #: Whether D is at an end of those tried: the losses then tell only its direction.
    is_at_edge: bool


def fit_losses(
    bounds: ArrayLike,
    losses: ArrayLike,
    *,
    method: Method = "least-squares",
    mu: float = HUBER_MU,
) -> LossFit:
    """Fit loss ~ C + M bound with M >= 0.

    Args:
        bounds: the bounds at the points, finite, >= 0, not all equal; at least 3.
        losses: the losses there, finite.
        method: "least-squares" of the losses, or "huber" of their logarithms, which tolerates
            outliers and needs losses > 0.
        mu: where Huber's loss turns from a square into a line, in log loss, > 0.

    Raises:
        ValueError: bad input.

    >>> fit = fit_losses([4.0, 2.0, 1.0], [5.0, 4.0, 3.5])
    >>> round(fit.C, 9), round(fit.M, 9), round(fit.r2, 9)
    (3.0, 0.5, 1.0)
    """
    b, y = _checked_points(bounds, losses, method=method, mu=mu)
    C, M, _ = _solve(b, y, method=method, mu=mu)
    return _described(b, y, C=C, M=M, method=method)


def fit_distance(
    distance_terms: ArrayLike,
    noise_terms: ArrayLike,
    losses: ArrayLike,
    *,
    method: Method = "least-squares",
    mu: float = HUBER_MU,
) -> DistanceFit:
    """Choose D so that loss ~ C + M (D^2 distance_terms + noise_terms) fits best.

    Tries a logarithmic grid, from 1/1000 to 1000 times the D where both parts of the bound are
    equal, then golden sections around the best. Both parts have similar shapes on most curves, so
    that noisy losses determine D only to within orders of magnitude.

    Args:
        distance_terms: t1 at D = 1 at the points (``split_bound``), finite, >= 0.
        noise_terms: t2 + t3 there, finite, >= 0.
        losses: as in `fit_losses`.
        method: as in `fit_losses`.
        mu: as in `fit_losses`.

    Raises:
        ValueError: bad input; or one of the parts is 0 at most of the points, so that D has no
            scale.
    """
    u, y = _checked_points(distance_terms, losses, method=method, mu=mu)
    v = checked_row("noise_terms", noise_terms)
    if len(v) != len(u):
        raise ValueError(f"noise_terms: expected {len(u)}, one a point, seen {len(v)}")
    if np.median(u) == 0 or np.median(v) == 0:
        raise ValueError("terms: expected both parts of the bound > 0, seen one that is mostly 0")

    def misfit(log_d: float) -> float:
        return _solve(np.exp(2 * log_d) * u + v, y, method=method, mu=mu)[2]

    middle = 0.5 * float(np.log(np.median(v) / np.median(u)))
    grid = middle + np.linspace(-np.log(DISTANCE_SPAN), np.log(DISTANCE_SPAN), DISTANCE_GRID)
    best = int(np.argmin([misfit(one) for one in grid]))
    log_d = _golden(
        misfit, float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    )
    D = float(np.exp(log_d))
    return DistanceFit(
        D=D,
        fit=fit_losses(D**2 * u + v, y, method=method, mu=mu),
        is_at_edge=best in (0, DISTANCE_GRID - 1),
    )


def _solve(b: Floats, y: Floats, *, method: Method, mu: float) -> tuple[float, float, float]:
    """Return C, M and the mean misfit that they minimise."""
    scale = float(b.max())
    C, M = _least_squares(b / scale, y)
    if method == "least-squares":
        return C, M / scale, float(np.mean((C + M * b / scale - y) ** 2))
    C, M = _huber(b / scale, y, start=(C, M), mu=mu)
    return C, M / scale, _huber_misfit(C + M * b / scale, y, mu=mu)


def _least_squares(b: Floats, y: Floats) -> tuple[float, float]:
    spread = b - b.mean()
    M = max(0.0, float(spread @ y) / float(spread @ spread))
    return float(y.mean() - M * b.mean()), M


def _huber(b: Floats, y: Floats, *, start: tuple[float, float], mu: float) -> tuple[float, float]:
    """Minimise Huber's loss of log residuals: least squares, reweighted and relinearised."""
    C, M = start
    if (C + M * b).min() <= 0:
        C, M = float(np.median(y)), 0.0
    for _ in range(MAX_ROUNDS):
        dC, dM = _huber_step(b, y, C=C, M=M, mu=mu)
        share = _downhill_share(b, y, C=C, M=M, dC=dC, dM=dM, mu=mu)
        C, M = C + share * dC, max(0.0, M + share * dM)
        change = np.abs(share * (dC + dM * b) / (C + M * b)).max()
        if change <= TOLERANCE:
            break
    return C, M


def _huber_step(b: Floats, y: Floats, *, C: float, M: float, mu: float) -> tuple[float, float]:
    """Return the change of C and M that solves the weighted, linear problem, with M kept >= 0."""
    p = C + M * b
    r = np.log(p / y)
    root = np.sqrt(mu / np.maximum(mu, np.abs(r)))
    columns = np.stack([root / p, root * b / p], axis=1)
    dC, dM = np.linalg.lstsq(columns, -root * r, rcond=None)[0]
    if M + dM >= 0:
        return float(dC), float(dM)
    left = -root * r + M * columns[:, 1]
    return float(columns[:, 0] @ left / (columns[:, 0] @ columns[:, 0])), -M


def _downhill_share(
    b: Floats, y: Floats, *, C: float, M: float, dC: float, dM: float, mu: float
) -> float:
    """Return the largest share 1, 1/2, 1/4, .. of the step that lowers the misfit, else 0."""
    here = _huber_misfit(C + M * b, y, mu=mu)
    for share in 0.5 ** np.arange(MAX_HALVINGS):
        p = C + share * dC + (M + share * dM) * b
        if p.min() > 0 and _huber_misfit(p, y, mu=mu) <= here:
            return float(share)
    return 0.0


def _huber_misfit(p: Floats, y: Floats, *, mu: float) -> float:
    """Return the mean of Huber's loss: r^2 / 2 up to mu, then mu |r| - mu^2 / 2."""
    r = np.abs(np.log(p / y))
    return float(np.mean(np.where(r <= mu, r**2 / 2, mu * r - mu**2 / 2)))


def _golden(f: Callable[[float], float], low: float, high: float) -> float:
    """Return a point where f, unimodal from low to high, is smallest."""
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(GOLDEN_ROUNDS):
        if fa <= fb:
            high, b, fb = b, a, fa
            a = high - GOLDEN * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + GOLDEN * (high - low)
            fb = f(b)
    return a if fa <= fb else b


def _described(b: Floats, y: Floats, *, C: float, M: float, method: Method) -> LossFit:
    wrong = C + M * b - y
    rest, total = float(wrong @ wrong), float(((y - y.mean()) ** 2).sum())
    relative = np.where(wrong == 0, 0.0, np.inf)
    np.divide(np.abs(wrong), np.abs(y), out=relative, where=y != 0)
    return LossFit(
        C=C,
        M=M,
        r2=1 - rest / total if np.ptp(y) else 1.0,
        median_relative_error=float(np.median(relative)),
        n=len(y),
        method=method,
    )


def _checked_points(
    bounds: ArrayLike, losses: ArrayLike, *, method: Method, mu: float
) -> tuple[Floats, Floats]:
    """Return bounds and losses as rows of float64."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, seen {method!r}")
    require_above_zero({"mu": mu}, "mu")
    b, y = checked_row("bounds", bounds), np.asarray(losses, dtype=np.float64)
    if y.shape != b.shape:
        raise ValueError(f"losses: expected {len(b)}, one a bound, seen shape {y.shape}")
    if len(b) < MIN_POINTS:
        raise ValueError(f"points: expected at least {MIN_POINTS}, seen {len(b)}")
    if np.ptp(b) == 0:
        raise ValueError(f"bounds: expected some that differ, seen all {b[0]:g}")
    if not np.isfinite(y).all():
        raise ValueError(f"losses: expected finite numbers, seen {y[~np.isfinite(y)][0]}")
    if method == "huber" and y.min() <= 0:
        raise ValueError(f"losses: expected numbers > 0, of which huber has logs, seen {y.min():g}")
    return b, y
