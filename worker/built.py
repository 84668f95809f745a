"""The live objects of one rank."""

from dataclasses import dataclass

from torch import nn

from optim.positions import TwoPositions
from worker.data.base import DataSet


@dataclass(frozen=True)
class Built:
    """What a specification has become.

    ``model``: the bare model, which is evaluated and saved. ``wrapped``: the same parameters in the
    form that is trained: a replica, compiled, or the model itself.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: TwoPositions
    data: DataSet
