"""Study (c): does the convex bound know which rates and which schedules are best?

Hinge loss, plain SGD, the last iterate, as the bound has it. The bound's size needs a distance and
a gradient norm that nobody knows; ratios between schedules do not.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from roadless.optim import SGDScheduleFree
from roadless.optim.theory.bounds import optimal_base, tuned_schedule_free
from tests.studies.evidence import schedules
from tests.studies.evidence.convex_search import Choice, Chosen, chosen
from tests.studies.evidence.linear_models import hinge_classifier
from tests.studies.evidence.record import Number, Record, Spread, Tuning
from tests.studies.evidence.schedules import factors
from tests.studies.evidence.search import Search
from tests.studies.evidence.side_by_side import Groups, Method
from tests.studies.evidence.vertex import best_octave, resampled_octaves

SCHEDULES = (
    schedules.CONSTANT,
    schedules.WSD,
    schedules.LINEAR,
    schedules.COSINE,
    schedules.ONE_MINUS_SQRT,
)
SCHEDULE_FREE = "schedule-free"
#: Its best rate is the unit of all others'.
BASELINE = schedules.CONSTANT
#: Draws of seeds for the intervals, and the ends of these in percent.
NUM_DRAWS = 500
INTERVAL = (5, 95)


@dataclass(frozen=True)
class Protocol:
    """How much is done."""

    num_steps: int
    batch_sizes: tuple[int, ...]
    num_tuning_seeds: int
    num_reporting_seeds: int
    first_grid: Search


class Predicted(Record):
    """What the bound says of a schedule, for distance 1 and gradient norm 1."""

    name: str
    best_rate: Number
    rate_ratio: Number
    bound: Number


class Observed(Record):
    """What training says of it; ratios are to the best rate of the constant schedule."""

    name: str
    tuning: Tuning
    #: Between points of the grid, with its interval over draws of the tuning seeds.
    rate_ratio: Number
    rate_ratio_low: Number
    rate_ratio_high: Number
    train_loss: Spread


class BatchResult(Record):
    """All schedules at one batch size."""

    batch_size: int
    observed: list[Observed]
    #: Spearman's, of losses and bounds over the schedules; schedule-free is not among them.
    rank_correlation: Number


class PredictionResult(Record):
    """The bound against training."""

    num_steps: int
    num_tuning_seeds: int
    predicted: list[Predicted]
    batches: list[BatchResult]


def run(protocol: Protocol) -> PredictionResult:
    """Predict once, observe at each batch size."""
    predicted = predictions(protocol.num_steps)
    return PredictionResult(
        num_steps=protocol.num_steps,
        num_tuning_seeds=protocol.num_tuning_seeds,
        predicted=predicted,
        batches=[_batch(size, protocol, predicted) for size in protocol.batch_sizes],
    )


def predictions(num_steps: int) -> list[Predicted]:
    """Return each schedule's best rate and its bound there; schedule-free last."""
    tuned = {name: optimal_base(factors(name, num_steps), 1.0, D=1.0) for name in SCHEDULES}
    tuned[SCHEDULE_FREE] = tuned_schedule_free(num_steps, G=1.0, D=1.0)
    unit = tuned[BASELINE][0]
    return [
        Predicted(name=name, best_rate=rate, rate_ratio=rate / unit, bound=bound)
        for name, (rate, bound) in tuned.items()
    ]


def methods() -> list[Method]:
    """Return SGD with each schedule, and schedule-free SGD."""

    def sgd(groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups)

    def schedule_free(groups: Groups) -> torch.optim.Optimizer:
        return SGDScheduleFree(groups)

    with_schedules = [Method(name, sgd, partial(factors, name)) for name in SCHEDULES]
    constant = partial(factors, schedules.CONSTANT)
    return [*with_schedules, Method(SCHEDULE_FREE, schedule_free, constant)]


def rank_correlation(values: list[float], others: list[float]) -> float:
    """Return Spearman's correlation of values that differ from each other."""
    ranks, other_ranks = np.argsort(np.argsort([values, others]))
    return float(np.corrcoef(ranks, other_ranks)[0, 1])


def _batch(batch_size: int, protocol: Protocol, predicted: list[Predicted]) -> BatchResult:
    choice = Choice(
        batch_size=batch_size,
        num_tuning_seeds=protocol.num_tuning_seeds,
        num_reporting_seeds=protocol.num_reporting_seeds,
        first_grid=protocol.first_grid,
    )
    model = hinge_classifier()
    found = {
        method.name: chosen(model, method, choice=choice, num_steps=protocol.num_steps)
        for method in methods()
    }
    observed = _observed(found, num_seeds=protocol.num_tuning_seeds)
    return BatchResult(
        batch_size=batch_size,
        observed=observed,
        rank_correlation=_agreement(observed, predicted),
    )


def _observed(found: dict[str, Chosen], *, num_seeds: int) -> list[Observed]:
    """Return each method's ratio to the baseline, both read from the same draws of seeds."""
    draws_DS = np.random.default_rng(0).integers(num_seeds, size=(NUM_DRAWS, num_seeds))
    octaves = {name: _octaves(one, draws_DS) for name, one in found.items()}
    unit, units_D = octaves[BASELINE]
    results = []
    for name, (octave, octaves_D) in octaves.items():
        low, high = np.percentile(2.0 ** (octaves_D - units_D), INTERVAL)
        results.append(
            Observed(
                name=name,
                tuning=Tuning.of(found[name].search),
                rate_ratio=2.0 ** (octave - unit),
                rate_ratio_low=low,
                rate_ratio_high=high,
                train_loss=Spread.of(found[name].scores.losses[0]),
            )
        )
    return results


def _octaves(one: Chosen, draws_DS: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    return (
        best_octave(one.search, one.search.losses),
        resampled_octaves(one.search, one.tuning_losses, draws_DS=draws_DS),
    )


def _agreement(observed: list[Observed], predicted: list[Predicted]) -> float:
    bounds = {one.name: one.bound for one in predicted}
    scheduled = [one for one in observed if one.name in SCHEDULES]
    return rank_correlation(
        [one.train_loss.mean for one in scheduled], [bounds[one.name] for one in scheduled]
    )
