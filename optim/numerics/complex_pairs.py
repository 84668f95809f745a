"""Complex tensors as pairs of reals: what is done to numbers is done to either part by itself.

All of torch.optim does so. A square of the complex number itself, or its modulus as the second
moment, would give steps that depend on the phase.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def as_pair(tensor: Tensor) -> Tensor:
    """Return a real tensor as it is, and a complex one as (..., 2); a view unless conjugated."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def require_plain_complex(parameters: Iterable[Tensor]) -> None:
    """Refuse complex parameters that cannot be stepped as pairs.

    Raises:
        ValueError: a parameter has two float16 parts, or is the lazy conjugate of another tensor.
    """
    for parameter in parameters:
        if parameter.dtype == torch.complex32:
            raise ValueError(
                "params: expected complex64 or complex128, as complex32 is too coarse to hold a "
                "small step, seen complex32"
            )
        if parameter.is_conj():
            raise ValueError(
                "params: expected a parameter with numbers of its own, seen the lazy conjugate of "
                "another tensor; make it with resolve_conj()"
            )


def with_pairs(
    direction: Callable[..., Tensor], gradient: Tensor, state: State, *numbers: Any
) -> Tensor:
    """Return a direction computed from pairs, as a complex number; real ones are passed through.

    ``direction`` gets the gradient and the state, both as pairs, and the numbers; it may replace
    tensors of the state.
    """
    if not gradient.is_complex():
        return direction(gradient, state, *numbers)
    pairs = {name: as_pair(tensor) for name, tensor in state.items() if tensor.is_complex()}
    u = direction(as_pair(gradient), pairs, *numbers)
    state.update({name: torch.view_as_complex(pair) for name, pair in pairs.items()})
    return torch.view_as_complex(u.contiguous())
