"""Study (b): one schedule-free run, read at several horizons, against runs tuned for each of them.

Schedule-free has one rate for all horizons, chosen at the middle one.
"""

from dataclasses import dataclass, replace

from tests.studies.evidence.adam_methods import SCHEDULE_FREE, adam_methods
from tests.studies.evidence.convex import MethodResult
from tests.studies.evidence.convex_search import Choice, Chosen, chosen
from tests.studies.evidence.linear_models import (
    LinearModel,
    orders,
    softmax_regression,
    steps_of,
)
from tests.studies.evidence.record import Number, Record, Spread, Tuning
from tests.studies.evidence.schedules import COSINE, LINEAR
from tests.studies.evidence.side_by_side import Method, Scores, train

RIVALS = (LINEAR, COSINE)
#: The one run is repeated at half and at double its rate.
RATE_FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Protocol:
    """How much is done; horizons are in epochs, ascending."""

    horizons: tuple[int, ...]
    choice: Choice

    @property
    def middle(self) -> int:
        """The horizon at which the one rate is chosen."""
        return self.horizons[len(self.horizons) // 2]

    def num_steps(self, model: LinearModel, horizon: int) -> int:
        """Return a horizon in steps."""
        return steps_of(model, num_epochs=horizon, batch_size=self.choice.batch_size)


class HorizonResult(Record):
    """What was found after so many epochs."""

    num_epochs: int
    num_steps: int
    schedule_free: Spread
    schedule_free_half_rate: Spread
    schedule_free_double_rate: Spread
    rivals: list[MethodResult]


class AnytimeResult(Record):
    """One run against two for each horizon."""

    batch_size: int
    tuned_at_epochs: int
    schedule_free_tuning: Tuning
    horizons: list[HorizonResult]

    @property
    def schedule_free_rate(self) -> Number:
        """The rate of the one run."""
        return self.schedule_free_tuning.best_rate


def run(protocol: Protocol) -> AnytimeResult:
    """Train the one run, then the rivals horizon by horizon."""
    model = softmax_regression()
    methods = {method.name: method for method in adam_methods()}
    one_run = _chosen(model, methods[SCHEDULE_FREE], protocol, protocol.middle)
    readings = _read(model, methods[SCHEDULE_FREE], protocol, rate=one_run.best_rate)
    rivals = [methods[name] for name in RIVALS]
    return AnytimeResult(
        batch_size=protocol.choice.batch_size,
        tuned_at_epochs=protocol.middle,
        schedule_free_tuning=Tuning.of(one_run.search),
        horizons=[
            _horizon(model, rivals, protocol, horizon=horizon, reading=reading)
            for horizon, reading in zip(protocol.horizons, readings, strict=True)
        ],
    )


def _read(model: LinearModel, method: Method, protocol: Protocol, *, rate: float) -> list[Scores]:
    """Train once to the last horizon, and score at each."""
    steps = [protocol.num_steps(model, horizon) for horizon in protocol.horizons]
    orders_STB = orders(
        model,
        seeds=protocol.choice.reporting_seeds,
        num_steps=steps[-1],
        batch_size=protocol.choice.batch_size,
    )
    rates = [rate * factor for factor in RATE_FACTORS]
    return list(train(model, method, rates=rates, orders_STB=orders_STB, score_at=steps))


def _horizon(
    model: LinearModel, rivals: list[Method], protocol: Protocol, *, horizon: int, reading: Scores
) -> HorizonResult:
    half, own, double = reading.losses
    one_run = replace(reading, losses=reading.losses[1:2], accuracies=reading.accuracies[1:2])
    return HorizonResult(
        num_epochs=horizon,
        num_steps=reading.step,
        schedule_free=Spread.of(own),
        schedule_free_half_rate=Spread.of(half),
        schedule_free_double_rate=Spread.of(double),
        rivals=[
            MethodResult.of(
                rival.name, _chosen(model, rival, protocol, horizon), schedule_free=one_run
            )
            for rival in rivals
        ],
    )


def _chosen(model: LinearModel, method: Method, protocol: Protocol, horizon: int) -> Chosen:
    num_steps = protocol.num_steps(model, horizon)
    return chosen(model, method, choice=protocol.choice, num_steps=num_steps)
