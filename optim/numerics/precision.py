"""Narrow parameters, wide arithmetic: steps are computed in float32, whatever the parameter is.

A float16 or bfloat16 parameter is too coarse to hold a small step. Its value is rounded
stochastically (`roadless.optim.numerics.rounding`), so that gradients are right on average; where
more must be kept, the part that rounding removed is stored beside it, in 16 bits per element.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from roadless.optim.numerics.sharding import blocks, local

_NARROW = frozenset({torch.float16, torch.bfloat16})
#: The bits of the exponent, which alone are a power of 2, or infinite.
_EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
#: Parts that a unit in the last place is divided into; int16 holds just less than one unit.
_PARTS = 2**15


def is_narrow(dtype: torch.dtype) -> bool:
    """Return whether steps are too small for this dtype."""
    return dtype in _NARROW


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for arithmetic and new state: float32 for narrower ones, else the same."""
    return torch.float32 if is_narrow(dtype) else dtype


def wide(parameter: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Return the parameter in working precision, with the low part if its state has one.

    It is the parameter itself, not a copy, unless that is narrow.
    """
    if not is_narrow(parameter.dtype):
        return parameter
    point = parameter.float()
    if "low" in state:
        for whole, narrow, low in _blocks(point, parameter, state["low"]):
            whole.copy_(with_low_part(narrow, low))
    return point


def keep_low_part(point: Tensor, parameter: Tensor, state: dict[str, Tensor]) -> None:
    """Save in the state what the narrow parameter lacks of the point; `wide` adds it back."""
    for whole, narrow, low in _blocks(point, parameter, low_of(parameter, state)):
        low.copy_(low_part(whole, narrow))


def low_of(parameter: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the state's low part, which starts at zero."""
    if "low" not in state:
        state["low"] = torch.zeros_like(parameter, dtype=torch.int16)
    return state["low"]


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split the local parts of same-shaped tensors alike; whole if their memory has gaps."""
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
    """The gap from |narrow| to the next larger number; above all finite ones that below them."""
    info, exponent = torch.finfo(narrow.dtype), _EXPONENTS[narrow.dtype]
    power = torch.bitwise_and(narrow.view(torch.int16), exponent).view(narrow.dtype)
    largest_power = 2.0 ** math.floor(math.log2(info.max))
    return (power.float() * info.eps).clamp_(
        info.smallest_normal * info.eps, largest_power * info.eps
    )
