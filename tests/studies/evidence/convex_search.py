"""How a rate is chosen on a linear model, and reported: on different seeds.

A seed is an order of examples; training begins at zero always.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tests.studies.evidence.linear_models import LinearModel, orders
from tests.studies.evidence.search import Search
from tests.studies.evidence.side_by_side import Method, Scores, train


@dataclass(frozen=True)
class Choice:
    """How every method chooses its rate."""

    batch_size: int
    num_tuning_seeds: int
    num_reporting_seeds: int
    first_grid: Search

    @property
    def tuning_seeds(self) -> range:
        """The seeds that the rate is chosen on."""
        return range(self.num_tuning_seeds)

    @property
    def reporting_seeds(self) -> range:
        """The seeds that losses are reported on."""
        return range(self.num_tuning_seeds, self.num_tuning_seeds + self.num_reporting_seeds)


@dataclass(frozen=True)
class Chosen:
    """A finished search, and what its best rate gave on the reporting seeds."""

    search: Search
    #: Last losses on the tuning seeds, (S,), by exponent of the rate.
    tuning_losses: dict[int, NDArray[np.float64]]
    #: At the one best rate.
    scores: Scores

    @property
    def best_rate(self) -> float:
        """The rate with the least mean loss over the tuning seeds."""
        return self.search.rate(self.search.best)


def chosen(model: LinearModel, method: Method, *, choice: Choice, num_steps: int) -> Chosen:
    """Search by the mean loss on the tuning seeds, then train once more on the others.

    All missing rates are trained side by side.
    """
    tuning_STB, reporting_STB = (
        orders(model, seeds=seeds, num_steps=num_steps, batch_size=choice.batch_size)
        for seeds in (choice.tuning_seeds, choice.reporting_seeds)
    )
    search = choice.first_grid
    losses: dict[int, NDArray[np.float64]] = {}
    while search.missing:
        exponents = search.missing
        rates = [search.rate(k) for k in exponents]
        scores = _last(model, method, rates=rates, orders_STB=tuning_STB)
        losses |= dict(zip(exponents, scores.losses, strict=True))
        search = search.told({k: float(losses[k].mean()) for k in exponents})
    best_rate = search.rate(search.best)
    scores = _last(model, method, rates=[best_rate], orders_STB=reporting_STB)
    return Chosen(search, losses, scores)


def _last(model: LinearModel, method: Method, *, rates: list[float], orders_STB: Tensor) -> Scores:
    num_steps = orders_STB.shape[1]
    (scores,) = train(model, method, rates=rates, orders_STB=orders_STB, score_at=[num_steps])
    return scores
