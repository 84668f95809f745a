"""Study (a): softmax regression, where every method may choose its rate."""

from dataclasses import dataclass

from tests.studies.evidence.adam_methods import SCHEDULE_FREE, adam_methods
from tests.studies.evidence.convex_search import Choice, Chosen, chosen
from tests.studies.evidence.linear_models import softmax_regression, steps_of
from tests.studies.evidence.record import Difference, Record, Spread, Tuning
from tests.studies.evidence.side_by_side import Scores


@dataclass(frozen=True)
class Protocol:
    """How much is done."""

    num_epochs: int
    choice: Choice


class MethodResult(Record):
    """One method at its best rate, on seeds that the rate was not chosen on."""

    name: str
    tuning: Tuning
    train_loss: Spread
    train_accuracy: Spread
    #: This method's loss less that of schedule-free; above 0 where schedule-free is better.
    loss_less_schedule_free: Difference

    @classmethod
    def of(cls, name: str, found: Chosen, *, schedule_free: Scores) -> "MethodResult":
        """``schedule_free``: at one rate, on the same seeds."""
        (losses,), (accuracies,) = found.scores.losses, found.scores.accuracies
        return cls(
            name=name,
            tuning=Tuning.of(found.search),
            train_loss=Spread.of(losses),
            train_accuracy=Spread.of(accuracies),
            loss_less_schedule_free=Difference.of(losses, schedule_free.losses[0]),
        )


class ConvexResult(Record):
    """All methods after the same number of steps."""

    num_examples: int
    num_epochs: int
    num_steps: int
    batch_size: int
    num_tuning_seeds: int
    methods: list[MethodResult]


def run(protocol: Protocol) -> ConvexResult:
    """Let every method choose its rate, and compare."""
    model, choice = softmax_regression(), protocol.choice
    num_steps = steps_of(model, num_epochs=protocol.num_epochs, batch_size=choice.batch_size)
    found = {
        method.name: chosen(model, method, choice=choice, num_steps=num_steps)
        for method in adam_methods()
    }
    schedule_free = found[SCHEDULE_FREE].scores
    return ConvexResult(
        num_examples=model.num_examples,
        num_epochs=protocol.num_epochs,
        num_steps=num_steps,
        batch_size=choice.batch_size,
        num_tuning_seeds=choice.num_tuning_seeds,
        methods=[
            MethodResult.of(name, one, schedule_free=schedule_free) for name, one in found.items()
        ],
    )
