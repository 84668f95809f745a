"""States made before the first step, only to be read: torch's distributed checkpoint asks for them.

torch.distributed.checkpoint.state_dict (2.13.0, ``_init_optim_state``) wants the names and shapes of
a state before there is one. It gives every parameter a gradient of zeros, sets every lr to 0, calls
``step()``, and puts lr back, but not if the step raises. In torch's own optimizers this counts as a
step; here it must leave no trace, wherever the parameters are.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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
    """States of parameters that have had no gradient: to be read once, then forgotten."""

    def __init__(self, states: Mapping[Tensor, dict[str, Any]] | None = None) -> None:
        super().__init__(dict, states or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return InitialStates, (dict(self),)


def is_idle(groups: Iterable[Group], closure: Callable[[], Any] | None) -> bool:
    """Return whether a step would move nothing and learn nothing.

    Without a closure, with every lr 0, and without a gradient that is not zero. Ranks agree on the
    answer: sharded gradients are summed over their mesh.
    """
    if closure is not None or any(float(group["lr"]) for group in groups):
        return False
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return not any(bool(whole(_magnitude(gradient))) for gradient in gradients)


def _magnitude(gradient: Tensor) -> Tensor:
    dense = gradient.coalesce().values() if gradient.is_sparse else gradient
    return dense.detach().abs().sum()


def is_initial(state: Mapping[str, Tensor], parameter: Tensor, *, num_steps: int) -> bool:
    """Return whether a saved state is one of a parameter that has had no gradient.

    Its averages are zero. If it counts gradients, it says so by a number below 0; if not, its
    points are still the parameter's value, or no step was taken at all.
    """
    averages = [tensor for name, tensor in state.items() if name.startswith("exp_avg")]
    if not state or any(bool(local(tensor).any()) for tensor in averages):
        return False
    counts = [int(state[name]) for name in COUNTS if name in state]
    if counts:
        return min(counts) < 0
    points = [tensor for name, tensor in state.items() if name in POINTS]
    return num_steps == 0 or (bool(points) and all(_is_equal(z, parameter) for z in points))


def _is_equal(point: Tensor, parameter: Tensor) -> bool:
    mine, own = local(point), local(parameter.detach())
    return mine.shape == own.shape and torch.equal(mine.to(own), own)
