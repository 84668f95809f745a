"""A job's losses beside its bound: the distance, the fit, and what other schedules promised. Pure.

A line through the eval curve, loss ~ C + M * bound, maps the bound to the loss. The distance D is
rarely known. It is taken for the one at which the line has slope 1, so that the bound falls as the
loss does: a larger one bounds more than there is, a smaller one bounds nothing. The best fit of all
distances would be another choice; its D is arbitrary, since the two terms have similar shapes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from roadless.optim.schedules.by_name import rates
from roadless.optim.theory.bounds import BoundTerms, split_bound, split_schedule_free_bound
from roadless.optim.theory.fitting import LossFit, fit_losses
from roadless.service.theory.averaging import Averaging
from roadless.service.theory.bounds import Terms, terms_at
from roadless.service.theory.reading import Record, TheoryUnavailable
from roadless.service.theory.steps import Blocks, Floats, Ints

#: The most evaluations in one answer; of more, an even choice with the first and the last one.
MAX_HORIZONS = 200
#: Offset, slope and distance are three unknowns; fewer points than these say nothing about them.
MIN_FIT_POINTS = 3
MIN_DISTANCE_POINTS = 4
#: Rounds of the search for the distance, how near to 1 the slope must come, and how far below the
#: distance for which the rates are the best it is searched.
MAX_ROUNDS = 30
SLOPE_TOLERANCE = 1e-6
SMALLEST_DISTANCE = 1e-2
#: Schedules that a job is compared with, each tuned for the steps that the job had.
ALTERNATIVES = ("constant", "wsd", "cosine", "linear", "one_minus_sqrt")
SCHEDULE_FREE = "schedule_free"

DistanceSource = Literal["given", "fitted", "assumed"]


@dataclass(frozen=True)
class Distance:
    """How far the start is from the optimum, and how that is known."""

    value: float
    source: DistanceSource


@dataclass(frozen=True)
class FitPair:
    """One line through the eval curve, found in two ways; ``huber`` forgives outliers."""

    huber: LossFit
    least_squares: LossFit


@dataclass(frozen=True)
class Analysis:
    """A job's evaluations, chosen and explained.

    ``steps``, ``losses`` and ``terms``: one entry for each evaluation shown. ``at_end``: the terms
    after the job's last step. ``no_fit_reason``: why ``fit`` is None.
    """

    steps: Ints
    losses: Floats
    terms: Terms
    at_end: Terms
    distance: Distance
    fit: FitPair | None
    no_fit_reason: str | None

    def predicted(self, bounds: Floats) -> Floats:
        """Return the losses that belong to ``bounds``; NaN without a fit."""
        if self.fit is None:
            return np.full(bounds.shape, np.nan)
        return self.fit.huber.predict(bounds)


@dataclass(frozen=True)
class Tuned:
    """A schedule at its best base rate over a job's steps."""

    schedule: str
    base_lr: float
    bound: float


def analyse(record: Record, averaging: Averaging | None, *, distance: float | None) -> Analysis:
    """Compare the job's losses with its bound.

    Args:
        record: the job.
        averaging: how its optimizer averages; None bounds the last iterate.
        distance: D, if it is known; otherwise it is fitted, or assumed to be the one for which the
            job's rates are the best.

    Raises:
        TheoryUnavailable: the bound exists nowhere, or not in numbers of double precision.
    """
    shown = thinned(record.evaluated.size)
    steps, losses = record.evaluated[shown], record.losses[shown]
    num_steps = record.blocks.num_steps
    try:
        terms = terms_at(record.blocks, [*steps, num_steps], averaging=averaging)
    except ValueError as error:
        raise TheoryUnavailable(f"expected rates and norms with a bound, saw {error}") from error
    if not np.isfinite(terms.distance).any():
        raise TheoryUnavailable("expected a step after which there is a bound, saw none")
    shown_terms, at_end = terms[: steps.size], terms[steps.size :]
    found = _distance(terms, losses, given=distance)
    fit, reason = _fit(shown_terms.at(found.value), losses)
    return Analysis(steps, losses, shown_terms, at_end, found, fit, reason)


def thinned(count: int) -> Ints:
    """Return which of ``count`` points are shown: MAX_HORIZONS at most, the ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_HORIZONS)).round().astype(np.int64))


def _distance(terms: Terms, losses: Floats, *, given: float | None) -> Distance:
    """``terms`` has one more entry than ``losses``: that of the job's end."""
    if given is not None:
        return Distance(given, "given")
    assumed = _distance_of_best_rates(terms)
    known = np.flatnonzero(np.isfinite(terms.distance[:-1]))
    if known.size >= MIN_DISTANCE_POINTS:
        found = _distance_of_slope_one(terms[known], losses[known], start=assumed)
        if found is not None:
            return Distance(found, "fitted")
    return Distance(assumed, "assumed")


def _distance_of_best_rates(terms: Terms) -> float:
    """Return the distance for which the rates used are the best, at the last bound there is."""
    last = np.flatnonzero(np.isfinite(terms.distance))[-1]
    return float(np.sqrt((terms.noise[last] + terms.last[last]) / terms.distance[last]))


def _distance_of_slope_one(terms: Terms, losses: Floats, *, start: float) -> float | None:
    """Return the distance at which the bound falls as the losses do; None if there is none.

    Where the start's term is most of the bound, D² times the slope hardly depends on D; so a few
    rounds are enough.
    """
    D = start
    for _ in range(MAX_ROUNDS):
        try:
            slope = fit_losses(terms.at(D), losses, method="huber").M
        except ValueError:  # the losses are not all above 0
            return None
        if abs(slope - 1) <= SLOPE_TOLERANCE:
            return D
        D *= float(np.sqrt(slope))
        if SMALLEST_DISTANCE * start > D:
            return None
    return None


def _fit(bounds: Floats, losses: Floats) -> tuple[FitPair | None, str | None]:
    known = np.isfinite(bounds)
    count = np.count_nonzero(known)
    if count < MIN_FIT_POINTS:
        return None, f"expected at least {MIN_FIT_POINTS} evaluations with a bound, saw {count}"
    try:
        huber = fit_losses(bounds[known], losses[known], method="huber")
        least_squares = fit_losses(bounds[known], losses[known], method="least-squares")
    except ValueError as error:
        return None, str(error)
    return FitPair(huber, least_squares), None


def best_factor(terms: Terms, *, distance: float) -> float | None:
    """By what to multiply all rates for the smallest bound; None where there is no bound."""
    ratio = distance**2 * terms.distance[-1] / (terms.noise[-1] + terms.last[-1])
    return float(np.sqrt(ratio)) if np.isfinite(ratio) else None


def alternatives(blocks: Blocks, *, distance: float) -> list[Tuned]:
    """Return what each schedule would have promised at its best, the smallest bound first."""
    found = [tuned(name, _promise(blocks, name, distance)) for name in ALTERNATIVES]
    found.append(tuned(SCHEDULE_FREE, _promise_of_average(blocks, distance)))
    return sorted(found, key=lambda one: one.bound)


def tuned(schedule: str, terms: BoundTerms) -> Tuned:
    """Return the best of the schedule whose rates at base 1 have these terms."""
    return Tuned(schedule, base_lr=terms.best_factor, bound=terms.best_total)


def _promise(blocks: Blocks, name: str, distance: float) -> BoundTerms:
    eta = rates(name, steps=blocks.eta.size)
    steps = blocks.at_rates(eta).until(blocks.num_steps)
    return split_bound(steps.eta, steps.grad_norms, D=distance)


def _promise_of_average(blocks: Blocks, distance: float) -> BoundTerms:
    steps = blocks.at_rates(np.ones(blocks.eta.size)).even()
    return split_schedule_free_bound(steps.eta, steps.grad_norms, D=distance)
