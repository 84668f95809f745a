"""Base rules: how a direction u comes from a gradient and from what the rule remembers.

Each rule is one small file in this package. A rule knows nothing about averaging, precision or
execution; `roadless.optim.core.engine` brings them together, and a backend may replace a rule's
tensor operations with a kernel.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from roadless.optim.averaging import Pace
from roadless.optim.backends.form import Direction
from roadless.optim.numerics.complex_pairs import as_pair

#: A parameter group of torch: its parameters, settings and counters.
Group = dict[str, Any]
#: The state of one parameter: tensors under flat names, which any file format can store.
State = dict[str, Tensor]
TensorList = list[Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some parameters of one group in one step: all that a rule or a backend sees.

    All tensors are in working precision, which is float32 for narrower parameters; then points and
    gradients are copies, and the engine writes the points back. All are real: a complex parameter
    and its gradient are views with one more dimension, for the two parts.
    """

    #: What moves, in place: y, or the parameter itself where nothing is averaged.
    points: TensorList
    #: Read only, one for each point, of its shape.
    gradients: TensorList
    #: One for each point: the rule's buffers and, under "z", schedule-free's.
    states: list[State]
    group: Group
    pace: Pace

    def buffers(self, name: str) -> TensorList:
        """Return the buffers of that name, one for each point, to be changed in place."""
        return [as_pair(state[name]) for state in self.states]


class Rule(ABC):
    """A base update rule. Frozen: all memory is in the batch's states, all settings in its group.

    To declare one: name the buffers, check the settings, compute u. See
    `roadless.optim.rules.adam`.
    """

    #: Whether a parameter's first gradient only fills the buffers (`start`) and moves nothing.
    rests_first: ClassVar[bool] = False
    #: Whether u depends on how many gradients a parameter has had, as bias corrections do, and the
    #: engine is to count them (`roadless.optim.averaging.Pace.age`).
    depends_on_age: ClassVar[bool] = True
    #: Whether every rank keeps all buffers of a sharded parameter, not only its shard's.
    keeps_whole_state: ClassVar[bool] = False

    def buffer_names(self, _group: Group, /) -> tuple[str, ...]:
        """Return the names of buffers that are as large as the parameter and start at zero."""
        return ()

    def check(self, group: Group) -> None:  # noqa: B027 -- most rules have settings, SGD has none
        """Raise ValueError when a setting of the rule is out of range."""

    def lr_factor(self, _group: Group, _t: int, /) -> float:
        """Return the factor of the learning rate at the t-th gradient, from 1; also for decay.

        The averaging weight of a group has the factor of its own t-th step.
        """
        return 1.0

    def start(self, point: Tensor, _gradient: Tensor, group: Group, /) -> State:
        """Return the buffers of a parameter after its first gradient."""
        names = self.buffer_names(group)
        return {n: torch.zeros_like(point, memory_format=torch.preserve_format) for n in names}

    def kernel(self, _group: Group, _t: int, /) -> Direction | None:
        """Return the direction at the t-th gradient as kernels know it, or None for none."""
        return None

    @abstractmethod
    def direction(self, batch: Batch) -> TensorList:
        """Return u for each gradient and update the buffers in place.

        The engine then moves by -γ (u + λ · point). Points and gradients are read only; a returned
        tensor may be a gradient itself, but not a buffer that changes later in the step.
        """
