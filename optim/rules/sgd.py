"""SGD: the gradient itself is the direction."""

from dataclasses import dataclass
from typing import ClassVar

from roadless.optim.backends.form import Direction, Gradient
from roadless.optim.rules.base import Batch, Group, Rule, TensorList


@dataclass(frozen=True, slots=True)
class SGD(Rule):
    """u = g; nothing is remembered."""

    depends_on_age: ClassVar[bool] = False

    def kernel(self, _group: Group, _t: int, /) -> Direction:
        """Return the direction of SGD, as kernels know it."""
        return Gradient()

    def direction(self, batch: Batch) -> TensorList:
        """Return the gradients themselves."""
        return batch.gradients
