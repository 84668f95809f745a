"""Repeated steps: the same tensors in the same places, with only the gradients different.

Finding out which kernel may take which tensors is most of the cost of a small model's step. So the
result is kept, and the next step only checks whether something has moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from roadless.optim.backends.form import Direction, Move

_PLAIN = {Tensor}
_address, _size, _numel = Tensor.data_ptr, Tensor.size, Tensor.numel
_is_contiguous, _is_neg = Tensor.is_contiguous, Tensor.is_neg
_dtype = Tensor.dtype.__get__  # type: ignore[attr-defined]  # a descriptor, to mypy a dtype


class Prepared(Protocol):
    """An update of tensors that stay in place (``roadless.optim.backends.numba_cpu.Job``)."""

    def run(self, gradients: Sequence[int], *, move: Move, direction: Direction) -> None:
        """Run it with the gradients at these addresses."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A prepared update of all parameters of a group, and what it was prepared for.

    Lists are by parameter; those of buffers by name, then by parameter.
    """

    prepared: Prepared
    #: The one that parameters and gradients have.
    dtypes: set[torch.dtype]
    #: Names of the state's buffers that the kernel uses.
    names: tuple[str, ...]
    #: Each shared with no other parameter.
    states: list[dict[str, Tensor]]
    buffers: list[Tensor]
    shapes: list[torch.Size]
    #: Of parameters, then of buffers.
    addresses: list[int]
    #: Of buffers, then of gradients.
    numels: list[int]
    #: The addresses of what has elements.
    written: frozenset[int]
    #: Of parameters, how many have no elements.
    num_empty: int

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        parameters: Sequence[Tensor],
        states: Mapping[Any, dict[str, Tensor]],
        names: tuple[str, ...],
    ) -> Self:
        """Record the tensors of a prepared update: at least one parameter, all of one dtype."""
        own = [states[parameter] for parameter in parameters]
        buffers = [state[name] for name in names for state in own]
        addresses = list(map(_address, [*parameters, *buffers]))
        return cls(
            prepared,
            dtypes={parameters[0].dtype},
            names=names,
            states=own,
            buffers=buffers,
            shapes=list(map(_size, parameters)),
            addresses=addresses,
            numels=list(map(_numel, [*buffers, *parameters])),
            written=frozenset(addresses) - {0},
            num_empty=addresses[: len(parameters)].count(0),
        )

    def gradients(
        self, parameters: Sequence[Tensor], states: Mapping[Any, dict[str, Tensor]]
    ) -> list[int] | None:
        """Return the gradients' addresses, if a kernel can read them and nothing else has changed.

        A tensor may be cut or transposed and keep its address, and a gradient may be of another
        kind than the one before: see `roadless.optim.backends.memory`. Every step asks, for one
        thing of all tensors at a time, because such a loop runs in C.
        """
        if not self._are_states_of(parameters, states):
            return None
        # Whoever has no gradient fails the next line.
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        if set(map(type, gradients)) != _PLAIN or set(map(_dtype, gradients)) != self.dtypes:
            return None
        if any(map(_is_neg, gradients)) or any(map(_is_neg, parameters)):
            return None
        own = [*parameters, *self.buffers]
        if list(map(_address, own)) != self.addresses or not all(map(_is_contiguous, own)):
            return None
        others = self.buffers + gradients
        if list(map(_size, parameters)) != self.shapes or list(map(_numel, others)) != self.numels:
            return None
        if not all(map(_is_contiguous, gradients)):
            return None
        found = list(map(_address, gradients))
        has_own_memory = found.count(0) == self.num_empty and self.written.isdisjoint(found)
        return found if has_own_memory else None

    def _are_states_of(
        self, parameters: Sequence[Tensor], states: Mapping[Any, dict[str, Tensor]]
    ) -> bool:
        # In one group, as is usual, nothing is looked up: torch's hash of a tensor is slow.
        is_all = len(states) == len(parameters) and all(map(is_, states, parameters))
        own = states.values() if is_all else map(states.get, parameters)
        if len(parameters) != len(self.states) or not all(map(is_, own, self.states)):
            return False
        buffers = [state.get(name) for name in self.names for state in self.states]
        return all(map(is_, buffers, self.buffers))
