"""States made before the first step, only to be read, for torch's distributed checkpoint.

torch.distributed.checkpoint.state_dict (2.13.0, ``_init_optim_state``) wants the names and shapes
of a state before there is one. It gives every parameter a gradient of zeros, sets every lr to 0,
calls ``step()``, and puts lr back, but not if the step raises. In torch's own optimizers this
counts as a step; here it must leave no trace, wherever the parameters are.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from roadless.optim.numerics.sharding import local, whole
from roadless.optim.rules.base import Group

#: Names of what moves with the parameter; before its first gradient, they are its value.
POINTS = ("x", "y", "z")
#: Names of what counts a parameter's gradients, or those that it missed; -1 before the first.
COUNTS = ("missed", "step")


class InitialStates(defaultdict[Tensor, dict[str, Any]]):
    """States of parameters that have had no gradient: to be read once, then forgotten.

    Only those who list or index them see them. Who asks with ``get``, as all do here that compute
    with a state, is told that there is none: weights may be loaded before the states are forgotten.
    """

    def __init__(self, states: Mapping[Tensor, dict[str, Any]] | None = None) -> None:
        super().__init__(dict, states or {})

    def get(self, _parameter: Tensor, default: Any = None) -> Any:
        """Return the default."""
        return default

    def __reduce__(self) -> tuple[Any, ...]:
        return InitialStates, (dict(self),)


def is_idle(groups: Sequence[Group], closure: Callable[[], Any] | None) -> bool:
    """Return whether a step would move nothing and learn nothing.

    Without a closure, with every lr 0, and with a gradient of zeros wherever one is required. Ranks
    agree on the answer: sharded gradients are summed over their mesh.
    """
    if closure is not None or any(float(group["lr"]) for group in groups):
        return False
    parameters = [p for group in groups for p in group["params"]]
    if not any(p.numel() for p in parameters) or any(
        p.requires_grad and p.grad is None for p in parameters
    ):
        return False
    gradients = [p.grad for p in parameters if p.grad is not None]
    return not any(bool(whole(_magnitude(gradient))) for gradient in gradients)


def _magnitude(gradient: Tensor) -> Tensor:
    dense = gradient.coalesce().values() if gradient.is_sparse else gradient
    return dense.detach().abs().sum()


def is_initial(state: Mapping[str, Tensor], *, num_steps: int) -> bool:
    """Return whether a saved state is one of a parameter that has had no gradient.

    Its averages are zero, and its count of gradients is below 0. Where nothing is counted, no step
    has been taken at all.
    """
    averages = [tensor for name, tensor in state.items() if name.startswith("exp_avg")]
    if not state or any(bool(local(tensor).any()) for tensor in averages):
        return False
    counts = [int(state[name]) for name in COUNTS if name in state]
    return min(counts) < 0 if counts else num_steps == 0


def is_unmoved(state: Mapping[str, Tensor], parameter: Tensor) -> bool:
    """Return whether all points of a state are the parameter's value."""
    return all(_is_equal(state[name], parameter) for name in POINTS if name in state)


def _is_equal(point: Tensor, parameter: Tensor) -> bool:
    mine, own = local(point), local(parameter.detach())
    return mine.shape == own.shape and torch.equal(mine.to(own), own)
