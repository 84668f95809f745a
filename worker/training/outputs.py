"""What a model gives in an evaluation, and whether it gives the same again.

For the trial before the first step (``trial.py``, ``causality.py``).
"""

import torch
from torch import nn

from roadless.optim.numerics.precision import is_narrow
from roadless.worker.model.base import evaluating
from roadless.worker.model.faults import run

#: By how much outputs may differ that were computed beside other numbers, so in other sums on any
#: device, as a part of the largest; a leak is hundreds of times larger.
_NEAR, _NEAR_IF_NARROW = 1e-4, 3e-2


def outputs_of(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the model gives in evaluation mode, a tensor in memory of its own.

    Whatever else it returns is returned as it is. Raises ModelInvalid for what its code raises.
    """
    with evaluating(model), torch.no_grad():
        outputs = run(model, inputs)
    return outputs.clone() if isinstance(outputs, torch.Tensor) else outputs


def are_same(one: torch.Tensor, other: object, *, tolerance: float) -> bool:
    """Return whether ``other`` is a tensor with the same numbers, up to ``tolerance``.

    ``tolerance``: as a part of the largest number; 0: in every bit. A NaN is a NaN.
    """
    if not isinstance(other, torch.Tensor) or other.shape != one.shape:
        return False
    if tolerance:
        return distance(one, other) <= tolerance
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def distance(one: torch.Tensor, other: torch.Tensor, *, rows: int | None = None) -> float:
    """Return the largest difference in the first ``rows``, as a part of the largest number of all.

    ``rows``: None for all. Infinities and NaN count as 0.
    """
    one, other = (tensor.nan_to_num(0.0, 0.0, 0.0) for tensor in (one, other))
    largest = max(float(one.abs().max()), float(other.abs().max()))
    return float((one[:rows] - other[:rows]).abs().max()) / largest if largest else 0.0


def nearness(model: nn.Module) -> float:
    """Return the tolerance for outputs of this model that were computed beside other numbers."""
    has_narrow = any(is_narrow(parameter.dtype) for parameter in model.parameters())
    return _NEAR_IF_NARROW if has_narrow else _NEAR
