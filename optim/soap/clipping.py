"""Adaptive gradient clipping: a gradient no larger than a fraction of what it is to move."""

import torch
from torch import Tensor

#: Parameters with a smaller norm are treated as having this one, so that zeros can grow.
_LEAST_NORM = 1e-3


def clip_adaptively(g: Tensor, point: Tensor, *, most: float, eps: float) -> Tensor:
    """Return g, scaled down where its norm exceeds ``most`` times that of the parameter.

    ::

        g · min(1, most · max(‖p‖, 0.001) / max(‖g‖, ε))

    Args:
        g: gradient, read only.
        point: p, where it was taken.
        most: largest ratio of the norms, > 0.
        eps: ε, >= 0.

    Source: Brock et al. 2021, arXiv 2102.06171, equation 3, here per tensor instead of per row.

    >>> clip_adaptively(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]), most=0.1, eps=0.0)
    tensor([0.0600, 0.0800])
    """
    largest = most * torch.linalg.vector_norm(point).clamp(min=_LEAST_NORM)
    scale = largest / torch.linalg.vector_norm(g).clamp(min=eps)
    clipped: Tensor = g * scale.clamp(max=1)
    return clipped
