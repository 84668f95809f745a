"""The live objects of one rank."""

from dataclasses import dataclass

from torch import nn

from optim.positions import TwoPositions
from worker.data.base import DataSet
from worker.evaluation_sets import HeldOutSets


@dataclass(frozen=True)
class Built:
    """What a specification has become.

    ``model``: the bare model, which is evaluated and saved. ``wrapped``: the same parameters in the
    form that is trained: a replica, compiled, or the model itself. ``held_out``: all that is
    evaluated, and with it what is trained on.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: TwoPositions
    held_out: HeldOutSets

    @property
    def data(self) -> DataSet:
        """What is trained on."""
        return self.held_out.main
