"""Convex bounds on the loss under a sequence of learning rates: pure functions over arrays.

`optim/schedules/schedules.py` makes the rates, `optim/planning.py` chooses among them and
`optim/theory/fitting.py` compares the bound with measured losses. numpy only. Everything is a sum
of positive terms and nothing is subtracted, so that rates that decay to almost zero lose no digits.

Throughout: F is convex, x* minimises it, D >= |x_1 - x*|, and x_{t+1} = x_t - eta_t g_t with
E g_t a subgradient at x_t and E|g_t|^2 <= G_t^2. Every bound is on E F - F(x*).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roadless.optim.checks import require_above_zero, require_at_least_zero
from roadless.optim.theory.rows import (
    Floats,
    Horizons,
    checked_horizons,
    checked_norms,
    checked_rates,
    checked_row,
)

#: What is bounded: the last iterate, or the best (and the average weighted by the rates).
Kind = Literal["refined", "standard"]
KINDS: tuple[Kind, ...] = ("refined", "standard")
#: Up to this many horizons, one pass for each is faster than one pass over the steps for all.
FEW_HORIZONS = 1024


@dataclass(frozen=True, slots=True)
class BoundTerms:
    """A bound at one horizon, split by how it depends on the base learning rate."""

    kind: str
    #: D^2 / (2 S): falls as 1 / base rate.
    t1: float
    #: Noise of the average: grows with the base rate.
    t2: float
    #: Price of the last iterate, 0 where an average is bounded: grows with the base rate.
    t3: float

    @property
    def total(self) -> float:
        """The bound."""
        return self.t1 + self.t2 + self.t3

    @property
    def best_factor(self) -> float:
        """Factor of all rates for the smallest bound: sqrt(t1 / (t2 + t3)).

        Raises:
            ValueError: all gradient norms are 0, so that a larger rate is always better.
        """
        if self.t2 + self.t3 == 0:
            raise ValueError("grad_norms: expected one > 0 for a best base rate, seen all 0")
        return float(np.sqrt(self.t1 / (self.t2 + self.t3)))

    @property
    def best_total(self) -> float:
        """The smallest bound over all base rates: 2 sqrt(t1 (t2 + t3))."""
        return float(2 * np.sqrt(self.t1 * (self.t2 + self.t3)))


def split_bound(
    eta: ArrayLike, grad_norms: ArrayLike, *, D: float, kind: Kind = "refined"
) -> BoundTerms:
    """Bound the loss after all the rates, term by term.

    With S the sum of all T rates::

        t1 = D^2 / (2 S)
        t2 = sum_t eta_t^2 G_t^2 / (2 S)
        t3 = 1/2 sum_{k<T} [eta_k / A_k] [sum_{t>=k} eta_t^2 G_t^2 / B_k]
        A_k = sum_{t>k} eta_t, B_k = sum_{t>=k} eta_t

    "refined" has all three and bounds the last iterate x_T; "standard" has t3 = 0 and bounds the
    best iterate, and the average sum_t eta_t x_t / S (of the loss there, by Jensen).

    Args:
        eta: rates of the steps 1..T, >= 0, finite.
        grad_norms: G_t, >= 0, finite; one for all steps or one per step.
        D: distance from start to optimum, > 0.
        kind: what is bounded.

    Raises:
        ValueError: bad input; the last rate is 0 ("refined") or all are, so that no bound exists.

    Source: Defazio et al., arXiv 2310.07831, theorem 10; Schaipp et al., arXiv 2501.18965,
    theorem 1.

    >>> round(split_bound([0.5, 0.5, 0.25], 1.0, D=1.0).total, 6)
    1.191667
    """
    rates, noise = _checked(eta, grad_norms, D=D, kind=kind)
    if kind == "refined":
        _require_last_rate(rates)
        return _refined(rates[::-1], noise[::-1], D)
    return _standard(rates, noise, D)


def bound(eta: ArrayLike, grad_norms: ArrayLike, *, D: float, kind: Kind = "refined") -> float:
    """Bound the loss after all the rates; see `split_bound` for arguments and errors."""
    return split_bound(eta, grad_norms, D=D, kind=kind).total


def bounds_at(
    eta: ArrayLike,
    grad_norms: ArrayLike,
    *,
    D: float,
    kind: Kind = "refined",
    horizons: Horizons | None = None,
) -> Floats:
    """Bound the loss after each of the horizons of one sequence of rates.

    Args:
        eta: rates of the steps 1..N, as in `split_bound`.
        grad_norms: as in `split_bound`.
        D: as in `split_bound`.
        kind: as in `split_bound`.
        horizons: which T, each in 1..N, in any order; None means all of 1..N. All horizons cost
            O(N^2) time and O(N) memory for "refined", O(N) for "standard".

    Returns:
        One bound per horizon, in their order.

    Raises:
        ValueError: bad input, or no bound exists at one of the horizons, which is named.
    """
    rates, noise = _checked(eta, grad_norms, D=D, kind=kind)
    if horizons is None:
        wanted = np.arange(1, len(rates) + 1)
    else:
        wanted = np.atleast_1d(checked_horizons(horizons, num_steps=len(rates)))
    _require_rates_at(rates, wanted, kind=kind)
    if kind == "standard":
        return _standard_at(rates, noise, D)[wanted - 1]
    if len(wanted) > FEW_HORIZONS:
        return _refined_at_all(rates, noise, D)[wanted - 1]
    backward, noise_backward = rates[::-1].copy(), noise[::-1].copy()
    offsets = len(rates) - wanted
    terms = (_refined(backward[n:], noise_backward[n:], D) for n in offsets)
    return np.array([one.total for one in terms])


def optimal_base(
    shape: ArrayLike, grad_norms: ArrayLike, *, D: float, kind: Kind = "refined"
) -> tuple[float, float]:
    """Return the base rate that minimises the bound, and that bound.

    The bound at rates gamma * shape is t1 / gamma + gamma (t2 + t3), with the terms at gamma = 1.

    Args:
        shape: rates of the steps 1..T at base rate 1.
        grad_norms: as in `split_bound`.
        D: as in `split_bound`; the best rate grows with D / G, the best bound with D G.
        kind: as in `split_bound`.

    Raises:
        ValueError: as `split_bound`; or all gradient norms are 0.

    >>> gamma, omega = optimal_base([1.0] * 400, 1.0, D=1.0)
    >>> print(f"{gamma:.6f} {omega:.6f}")
    0.018176 0.137545
    """
    terms = split_bound(shape, grad_norms, D=D, kind=kind)
    return terms.best_factor, terms.best_total


def averaging_weights(eta: ArrayLike, *, r: float = 0.0, weight_lr_power: float = 2.0) -> Floats:
    """Return how much each step counts in the average of a schedule-free optimizer.

    w_t = t^r (max_{s<=t} eta_s)^weight_lr_power, as in `optim/averaging.py`.

    Args:
        eta: rates of the steps 1..T, >= 0, finite.
        r: power of t, >= 0.
        weight_lr_power: power of the rate, >= 0.

    Raises:
        ValueError: bad input.
    """
    require_at_least_zero({"r": r, "weight_lr_power": weight_lr_power}, "r", "weight_lr_power")
    rates = checked_rates(eta)
    steps = np.arange(1, len(rates) + 1, dtype=np.float64)
    return steps**r * np.maximum.accumulate(rates) ** weight_lr_power


def averaged_bounds_at(
    eta: ArrayLike, grad_norms: ArrayLike, *, D: float, weights: ArrayLike
) -> Floats:
    """Bound the loss at schedule-free's x_T for every T, for any rates and weights.

    x_T = sum_{t<=T} w_t z_t / W_T with W_T the sum of weights, z_{t+1} = z_t - eta_t g_t, g_t at
    y_t = (1 - beta) z_t + beta x_t, any beta in [0, 1]. With a_t = w_t / eta_t::

        V_1 = a_1 (D^2 + eta_1^2 G_1^2)
        V_t = V_{t-1} max(1, a_t / a_{t-1}) + w_t eta_t G_t^2
        E F(x_T) - F(x*) <= V_T / (2 W_T)

    Weights proportional to the rates make it (D^2 + sum eta_t^2 G_t^2) / (2 sum eta_t), the
    "standard" bound; equal weights and a constant rate, tuned, make it D G / sqrt(T). Decreasing
    a_t cost nothing, increasing ones multiply: w_t ~ t^r at a constant rate costs a factor r + 1.
    `docs/theory/schedule-free.md` has the proof.

    Args:
        eta: rates of the steps 1..N, > 0, finite.
        grad_norms: as in `split_bound`, with g_t at y_t.
        D: |z_1 - x*|, > 0.
        weights: w_t, > 0, finite, one per step, fixed before the run.

    Returns:
        The bounds at T = 1..N.

    Raises:
        ValueError: bad input.

    Source: the averages are those of Defazio et al., arXiv 2405.15682, theorem 2, whose proof gives
    the first step; Pun et al., arXiv 2511.07767v1, have averages that suit the schedule.
    """
    rates, noise, w = _checked_weights(eta, grad_norms, D=D, weights=weights)
    a = w / rates
    p, q = _potential(a, w * noise / rates, start=0.0)
    return _over_weights(D**2 * p + q, w)


def schedule_free_bounds_at(
    eta: ArrayLike,
    grad_norms: ArrayLike,
    *,
    D: float,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Floats:
    """Bound the loss at the x of this package's schedule-free SGD after every step.

    The optimizers give step t's weight to the point that step t produced: x after T steps is the
    average of z_2..z_{T+1} with w_1..w_T, and the start has no weight. So `averaged_bounds_at`
    holds from z_2 on, where D^2 has grown to at most D^2 + eta_1^2 G_1^2, with w_t paired with
    eta_{t+1}. The gradient at y_{T+1} is not taken; the proof assumes one more step, of rate eta_T,
    whose gradient is bounded by G_T.

    At a constant rate and r = 0 this is (D^2 + (T + 1) eta^2 G^2) / (2 T eta).

    Args:
        eta: rates of the steps 1..N after warmup and schedule, > 0, finite.
        grad_norms: as in `averaged_bounds_at`.
        D: as in `averaged_bounds_at`.
        r: as the optimizer's, >= 0.
        weight_lr_power: as the optimizer's, >= 0.

    Returns:
        The bounds at T = 1..N.

    Raises:
        ValueError: bad input.
    """
    p, q, w = _schedule_free_potential(eta, grad_norms, D=D, r=r, weight_lr_power=weight_lr_power)
    return _over_weights(D**2 * p + q, w)


def split_schedule_free_bound(
    eta: ArrayLike,
    grad_norms: ArrayLike,
    *,
    D: float,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> BoundTerms:
    """Bound the loss at schedule-free SGD's x after all the rates, split for tuning the base rate.

    Arguments and errors are those of `schedule_free_bounds_at`, whose last value is the total.
    """
    p, q, w = _schedule_free_potential(eta, grad_norms, D=D, r=r, weight_lr_power=weight_lr_power)
    t1, t2 = _over_weights(D**2 * p, w)[-1], _over_weights(q, w)[-1]
    return BoundTerms(kind="schedule-free", t1=float(t1), t2=float(t2), t3=0.0)


def schedule_free_bound(
    eta: ArrayLike,
    grad_norms: ArrayLike,
    *,
    D: float,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> float:
    """Bound the loss at schedule-free SGD's x after all steps; see `schedule_free_bounds_at`."""
    return split_schedule_free_bound(
        eta, grad_norms, D=D, r=r, weight_lr_power=weight_lr_power
    ).total


def tuned_schedule_free(T: int, *, G: float, D: float) -> tuple[float, float]:
    """Return the constant rate D / (G sqrt(T)) and the bound D G / sqrt(T) that it gives x_T.

    For the average of z_1..z_T with equal weights and |g_t| <= G, as in the paper.

    Args:
        T: number of steps, >= 1.
        G: bound on the gradient norms, > 0.
        D: distance from start to optimum, > 0.

    Raises:
        ValueError: bad input.

    Source: Defazio et al., arXiv 2405.15682, theorem 1.

    >>> tuned_schedule_free(400, G=1.0, D=1.0)
    (0.05, 0.05)
    """
    require_above_zero({"T": T, "G": G, "D": D}, "T", "G", "D")
    root = float(np.sqrt(T))
    return D / (G * root), D * G / root


def _refined(backward: Floats, noise_backward: Floats, D: float) -> BoundTerms:
    """Split the refined bound; the last step comes first, so that running sums are tail sums."""
    B = np.cumsum(backward)
    C = np.cumsum(noise_backward)
    t3 = 0.5 * float(np.sum((backward[1:] / B[:-1]) * (C[1:] / B[1:])))
    return BoundTerms(
        kind="refined", t1=float(D**2 / (2 * B[-1])), t2=float(C[-1] / (2 * B[-1])), t3=t3
    )


def _standard(rates: Floats, noise: Floats, D: float) -> BoundTerms:
    S = float(rates.sum())
    if S == 0:
        raise ValueError("eta: expected a rate > 0 for a bound, seen all 0")
    return BoundTerms(kind="standard", t1=D**2 / (2 * S), t2=float(noise.sum()) / (2 * S), t3=0.0)


def _standard_at(rates: Floats, noise: Floats, D: float) -> Floats:
    """Return the standard bound at every horizon; infinite while no rate was above 0."""
    with np.errstate(divide="ignore"):
        return np.asarray((D**2 + np.cumsum(noise)) / (2 * np.cumsum(rates)))


def _refined_at_all(rates: Floats, noise: Floats, D: float) -> Floats:
    """Return the refined bound at every horizon, in one pass over k from the last step back.

    ``B[T]`` and ``C[T]`` hold the tail sums from k to T; for horizons of rate 0 the result is
    meaningless.
    """
    N = len(rates)
    B, C, t3, A, term = (np.zeros(N) for _ in range(5))
    with np.errstate(divide="ignore", invalid="ignore"):
        for k in range(N - 1, -1, -1):
            C[k:] += noise[k]
            A[k:] = B[k:]
            B[k:] += rates[k]
            np.divide(C[k + 1 :], B[k + 1 :], out=term[k + 1 :])
            term[k + 1 :] *= rates[k]
            term[k + 1 :] /= A[k + 1 :]
            t3[k + 1 :] += term[k + 1 :]
        return np.asarray((D**2 + C) / (2 * B) + 0.5 * t3)


def _potential(a: Floats, noise: Floats, *, start: float) -> tuple[Floats, Floats]:
    """Return p, q with V_t = D^2 p_t + q_t: what is left of the start, and of all noise so far.

    ``noise`` is w_t eta_t G_t^2; ``start`` is what the distance had accumulated before, beside D^2.
    """
    rise = np.maximum(1.0, a[1:] / a[:-1])
    with np.errstate(over="ignore"):
        growth = np.cumprod(np.concatenate(([1.0], rise)))
    if not np.isfinite(growth[-1]):
        raise ValueError("weights: expected w/eta to rise by a finite factor, seen infinite")
    p = a[0] * growth
    return p, p * start + growth * np.cumsum(noise / growth)


def _schedule_free_potential(
    eta: ArrayLike, grad_norms: ArrayLike, *, D: float, r: float, weight_lr_power: float
) -> tuple[Floats, Floats, Floats]:
    """Return p, q of every horizon and the weights, for the average that begins with z_2."""
    weights = averaging_weights(eta, r=r, weight_lr_power=weight_lr_power)
    rates, noise, w = _checked_weights(eta, grad_norms, D=D, weights=weights)
    p, q = w / rates, w * noise / rates
    q[0] += p[0] * noise[0]
    if len(rates) > 1:
        a = w[:-1] / rates[1:]
        p_before, q_before = _potential(a, w[:-1] * noise[1:] / rates[1:], start=noise[0])
        rise = np.maximum(1.0, p[1:] / a)
        p[1:], q[1:] = p_before * rise, q_before * rise + q[1:]
    return p, q, w


def _over_weights(V: Floats, w: Floats) -> Floats:
    return np.asarray(V / (2 * np.cumsum(w)))


def _checked(
    eta: ArrayLike, grad_norms: ArrayLike, *, D: float, kind: Kind
) -> tuple[Floats, Floats]:
    """Return the rates, and eta_t^2 G_t^2."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, seen {kind!r}")
    require_above_zero({"D": D}, "D")
    rates = checked_rates(eta)
    return rates, (rates * checked_norms(grad_norms, num_steps=len(rates))) ** 2


def _checked_weights(
    eta: ArrayLike, grad_norms: ArrayLike, *, D: float, weights: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Return the rates, eta_t^2 G_t^2 and the weights."""
    rates, noise = _checked(eta, grad_norms, D=D, kind="standard")
    w = checked_row("weights", weights)
    if len(w) != len(rates):
        raise ValueError(f"weights: expected {len(rates)}, one a step, seen {len(w)}")
    for name, row in (("eta", rates), ("weights", w)):
        if not row.all():
            t = int(np.argmin(row)) + 1
            raise ValueError(f"{name}: expected numbers > 0 for an average, seen 0 at step {t}")
    return rates, noise, w


def _require_last_rate(rates: Floats) -> None:
    if rates[-1] == 0:
        raise ValueError(
            f"eta: expected a last rate > 0, as the bound divides by it, seen 0 at {len(rates)}"
        )


def _require_rates_at(rates: Floats, wanted: NDArray[np.int64], *, kind: Kind) -> None:
    """Refuse horizons without a bound: a last rate of 0, or ("standard") nothing but zeros."""
    reached = rates if kind == "refined" else np.maximum.accumulate(rates)
    without = wanted[reached[wanted - 1] == 0]
    if without.size:
        expected = "a rate > 0 at every horizon" if kind == "refined" else "a rate > 0 by then"
        raise ValueError(f"eta: expected {expected}, seen 0 at step {without[0]}")
