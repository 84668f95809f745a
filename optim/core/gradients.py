"""How gradients are read: dense, uphill where a group says ``maximize``, and never written."""

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
    """Return the parameters that have a gradient.

    Raises:
        ValueError: a gradient is sparse.
    """
    gradients = [parameter.grad for parameter in parameters]
    if any([g is not None and g.is_sparse for g in gradients]):  # noqa: C419  a list is faster
        raise ValueError(
            "expected dense gradients, seen a sparse one; make embeddings with sparse=False"
        )
    return [p for p, g in zip(parameters, gradients, strict=True) if g is not None]
