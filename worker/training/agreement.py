"""What all ranks agree on after a step: the sum of their losses, and the lead's orders.

One small all-reduce carries both, so that all make the same decision after the same step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from roadless.worker.distributed.process_group import Cluster


class Signals(NamedTuple):
    """What the user and the service want of the attempt."""

    stop: bool = False
    pause: bool = False
    leave: bool = False  #: the attempt is over: exit without a report
    evaluate: bool = False
    resize: bool = False  #: leave with the next training state, to continue with more ranks


class Due(NamedTuple):
    """What the job's plan asks for after this step."""

    evaluation: bool = False
    state: bool = False
    #: Evaluations that are under way are judged before a training state is saved.
    judgement: bool = False


class Ending(NamedTuple):
    """What ends the job without a signal: its budget is used up, or it stops early."""

    budget_reached: bool = False
    good_enough: bool = False  #: an evaluation has reached the job's goal
    no_better: bool = False  #: the last evaluations were no better


class Orders(NamedTuple):
    """What the lead wants of all ranks after this step. Tuples, since each step creates some."""

    signals: Signals = Signals()
    due: Due = Due()
    ending: Ending = Ending()

    @property
    def is_end(self) -> bool:
        """Whether no further step is to be taken."""
        signals = self.signals
        return any(self.ending) or signals.stop or signals.pause or signals.leave

    @property
    def evaluates(self) -> bool:
        """Whether there is an evaluation after this step, planned or requested by a user."""
        return self.signals.evaluate or self.due.evaluation

    @property
    def flags(self) -> tuple[bool, ...]:
        """Every flag, in the order in which ranks exchange them."""
        signals, due, ending = self
        return (
            signals.stop,
            signals.pause,
            ending.budget_reached,
            signals.leave,
            signals.evaluate,
            signals.resize,
            due.evaluation,
            due.state,
            ending.good_enough,
            ending.no_better,
            due.judgement,
        )

    @classmethod
    def of_flags(cls, flags: Sequence[bool]) -> "Orders":
        """Build the value from what :attr:`flags` gave on another rank."""
        stop, pause, budget, leave, evaluate, resize, evaluation, state, enough, worse, judge = (
            flags
        )
        return cls(
            Signals(stop, pause, leave, evaluate, resize),
            Due(evaluation, state, judge),
            Ending(budget, enough, worse),
        )


@dataclass(frozen=True)
class Agreement:
    """What all ranks know after the all-reduce. ``loss``: mean over ``count`` targets of all."""

    loss: float
    count: int
    orders: Orders


def agree(cluster: Cluster, orders: Orders, *, loss_sum: float = 0.0, count: int = 0) -> Agreement:
    """Sum the losses and receive the lead's orders, in the one small all-reduce of every step.

    ``count``: targets of this rank that ``loss_sum`` is the sum over. A sum of non-finite losses is
    non-finite, so every rank sees that it is.
    """
    mine = orders if cluster.is_lead else Orders()
    if cluster.world_size == 1:
        return Agreement(loss_sum / max(count, 1), count, mine)
    numbers = torch.tensor([loss_sum, float(count), *map(float, mine.flags)], dtype=torch.float64)
    total, counted, *heard = cluster.sum(numbers).tolist()
    orders_of_lead = Orders.of_flags([number > 0 for number in heard])
    return Agreement(total / max(counted, 1.0), int(counted), orders_of_lead)
