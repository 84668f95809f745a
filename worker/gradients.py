"""The gradient as one vector over all parameters, wherever they lie: its norm, and clipping it."""

import torch

from optim.precision import is_narrow
from optim.sharding import local, whole

#: As in torch: keeps the division defined for a gradient of zero.
_EPSILON = 1e-6


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Drop all gradients: ``zero_grad`` without its notes to profilers, most of its time."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def global_norm(optimizer: torch.optim.Optimizer) -> float:
    """Return the 2-norm of all gradients, sharded ones whole; every rank gets the same number.

    Of narrow gradients the squares are added in float32. Parameters without a gradient count 0.
    """
    gradients = _gradients(optimizer)
    if not gradients:
        return 0.0
    has_narrow = any(is_narrow(gradient.dtype) for gradient in gradients)
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32 if has_narrow else None)
    return float(whole(torch.linalg.vector_norm(torch.stack(norms))))


def clip(optimizer: torch.optim.Optimizer, *, norm: float, most: float) -> None:
    """Scale all gradients so that their norm, which is ``norm``, is at most ``most``, in place."""
    factor = torch.clamp(most / (torch.tensor(norm) + _EPSILON), max=1.0)
    scale(optimizer, float(factor))


def scale(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply all gradients by a number, in place."""
    gradients = [local(gradient) for gradient in _gradients(optimizer)]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
