"""How gradients are read: dense, uphill where a group says ``maximize``, and never written."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from roadless.optim.core.shapes import refuse_gradient
from roadless.optim.rules.base import Group, TensorList


def gradient_of(parameter: Tensor, group: Group) -> Tensor:
    """Return the gradient of what is minimised: that of the loss, or its negative.

    Raises:
        ValueError: it is of another size than the parameter.
    """
    gradient = parameter.grad
    assert gradient is not None
    if gradient.numel() != parameter.numel():
        refuse_gradient(gradient, parameter)
    return -gradient if group.get("maximize", False) else gradient


def with_gradient(parameters: TensorList) -> TensorList:
    """Return the parameters that have a gradient."""
    return [parameter for parameter in parameters if parameter.grad is not None]


def require_dense(groups: Iterable[dict[str, Any]]) -> None:
    """Refuse sparse gradients, before anything has moved.

    Raises:
        ValueError: some parameter has one.
    """
    for group in groups:
        gradients = [parameter.grad for parameter in group["params"]]
        if any([g.is_sparse for g in gradients if g is not None]):  # noqa: C419  a list is faster
            raise ValueError(
                "expected dense gradients, seen a sparse one; make embeddings with sparse=False"
            )
