"""Narrow parameters, wide arithmetic: steps are computed in float32, whatever the parameter is.

A float16 or bfloat16 parameter is too coarse to remember a small step. What it shows is rounded
stochastically (`roadless.optim.numerics.rounding`), so that gradients are right on average; where
more must be remembered, the part that the rounding took away is kept beside it, in 16 bits per
element.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from roadless.optim.numerics.sharding import blocks, local

_NARROW = frozenset({torch.float16, torch.bfloat16})
#: Parts that a unit in the last place is divided into; int16 holds just less than one unit.
_PARTS = 2**15


def is_narrow(dtype: torch.dtype) -> bool:
    """Return whether steps are too small for this dtype."""
    return dtype in _NARROW


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in, and of new state: float32 for narrower ones, else itself."""
    return torch.float32 if is_narrow(dtype) else dtype


def wide(parameter: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Return the parameter in working precision, with the low part that its state may keep.

    It is the parameter itself, no copy, unless that is narrow.
    """
    if not is_narrow(parameter.dtype):
        return parameter
    point = parameter.float()
    if "low" in state:
        for whole, narrow, low in _blocks(point, parameter, state["low"]):
            whole.copy_(with_low_part(narrow, low))
    return point


def keep_low_part(point: Tensor, parameter: Tensor, state: dict[str, Tensor]) -> None:
    """Note in the state what the narrow parameter lacks of the point; `wide` gives it back."""
    for whole, narrow, low in _blocks(point, parameter, low_of(parameter, state)):
        low.copy_(low_part(whole, narrow))


def low_of(parameter: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the state's low part, which starts at zero."""
    if "low" not in state:
        state["low"] = torch.zeros_like(parameter, dtype=torch.int16)
    return state["low"]


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut the local parts of equal tensors in the same way; whole if their memory has gaps."""
    parts = [local(tensor) for tensor in tensors]
    if all(part.is_contiguous() for part in parts):
        return zip(*map(blocks, parts), strict=True)
    return iter([tuple(parts)])


def with_low_part(narrow: Tensor, low: Tensor) -> Tensor:
    """Return the float32 value that `low_part` was taken from, to 23 bits or better.

    ::

        point = narrow + low · ulp(narrow) / 2¹⁵

    >>> narrow, point = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.00123])
    >>> with_low_part(narrow, low_part(point, narrow))
    tensor([1.0012])
    """
    return narrow.float() + low.float() * (_ulp(narrow) / _PARTS)


def low_part(point: Tensor, narrow: Tensor) -> Tensor:
    """Return what ``narrow`` lacks of the point, as an int16 in parts of an ulp.

    Args:
        point: float32.
        narrow: either neighbour of the point in float16 or bfloat16.
    """
    parts = (point - narrow.float()) / (_ulp(narrow) / _PARTS)
    return parts.round_().nan_to_num_(0.0).clamp_(1 - _PARTS, _PARTS - 1).to(torch.int16)


def _ulp(narrow: Tensor) -> Tensor:
    """The gap from |narrow| to the next larger number."""
    magnitude = narrow.abs()
    above = (magnitude.view(torch.int16) + 1).view(narrow.dtype)
    return above.float() - magnitude.float()
