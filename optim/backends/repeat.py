"""A step like the one before: the same tensors in the same places, and only other gradients.

To find out which kernel may take which tensors is most of what a small model's step costs. So what
was found is kept, and the next step asks no more than whether something has moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from roadless.optim.backends.form import Direction, Move


class Prepared(Protocol):
    """An update of tensors that stay where they are (``roadless.optim.backends.numba_cpu.Job``)."""

    def run(self, gradients: Sequence[int], *, move: Move, direction: Direction) -> None:
        """Do it with the gradients at these addresses."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """What one kernel does with all parameters of a group, and where it found them."""

    prepared: Prepared
    dtype: torch.dtype
    #: Of the buffers in the states that the kernel uses.
    names: tuple[str, ...]
    #: Of each parameter: its state, which no other one has, its address and those of the buffers.
    places: list[tuple[dict[str, Tensor], int, list[int]]]

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        parameters: Sequence[Tensor],
        states: Mapping[Any, dict[str, Tensor]],
        names: tuple[str, ...],
    ) -> Self:
        """Note where the tensors of an update are that was prepared; of one dtype, at least one."""
        places = []
        for parameter in parameters:
            state = states[parameter]
            buffers = [state[name].data_ptr() for name in names]
            places.append((state, parameter.data_ptr(), buffers))
        return cls(prepared, parameters[0].dtype, names, places)

    def gradients(
        self, parameters: Sequence[Tensor], states: Mapping[Any, dict[str, Tensor]]
    ) -> list[int] | None:
        """Return where the gradients are, if a kernel can read them and nothing else has moved.

        A tensor cannot change its dtype and stay where it is.
        """
        if len(parameters) != len(self.places):
            return None
        found = []
        for parameter, (state, address, buffers) in zip(parameters, self.places, strict=True):
            gradient = parameter.grad
            if (
                states.get(parameter) is not state
                or parameter.data_ptr() != address
                or not parameter.is_contiguous()
                or type(gradient) is not Tensor
                or gradient.dtype is not self.dtype
                or not gradient.is_contiguous()
            ):
                return None
            for name, place in zip(self.names, buffers, strict=True):
                buffer = state.get(name)
                if buffer is None or buffer.data_ptr() != place:
                    return None
            found.append(gradient.data_ptr())
        return found
