"""A base steps narrow parameters in float32: in their place it is given z, which is kept wide.

In bfloat16 it would round each step to nearest, which most steps of a small learning rate do not
survive, and keep its averages in bfloat16 too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from roadless.optim.numerics.precision import is_narrow, working_dtype
from roadless.optim.numerics.sharding import local


@contextmanager
def stepping(base: Optimizer, points: Mapping[Tensor, Tensor]) -> Iterator[dict[Tensor, Tensor]]:
    """Let the base step other tensors than its parameters inside the block, with their state.

    Args:
        base: its groups and its state name the others inside the block, in the same places.
        points: what to step, by parameter; written in place. Gradients are those of the parameters,
            converted to its dtype, and are dropped with them.

    Yields:
        What stands in for each parameter.

    Raises:
        RuntimeError: the base has stepped a parameter itself, by a list of its own.
    """
    if not points:
        yield {}
        return
    others = {parameter: _stand_in(parameter, point) for parameter, point in points.items()}
    lists = [group["params"] for group in base.param_groups]
    for group in base.param_groups:
        group["params"] = [others.get(p, p) for p in group["params"]]
    _rename(base, others)
    versions = [local(parameter)._version for parameter in points]
    try:
        yield others
        if versions != [local(parameter)._version for parameter in points]:
            raise RuntimeError(
                f"base: expected one that steps what its groups hold, seen {type(base).__name__} "
                "step narrow parameters by a list of its own; keep them in float32"
            )
    finally:
        for group, parameters in zip(base.param_groups, lists, strict=True):
            group["params"] = parameters
        _rename(base, {other: parameter for parameter, other in others.items()})
        for parameter, other in others.items():
            _take_back(parameter, other, points[parameter])


def widen_state(base: Optimizer, parameter: Tensor) -> None:
    """Convert what a base keeps of a parameter in a narrow dtype, as when it was made or loaded."""
    state = base.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, Tensor) and is_narrow(value.dtype) and value.dim():
            state[name] = value.to(working_dtype(value.dtype))


def _stand_in(parameter: Tensor, point: Tensor) -> Tensor:
    other = Parameter(point, requires_grad=parameter.requires_grad)
    if parameter.grad is not None:
        other.grad = parameter.grad.to(point.dtype)
    return other


def _rename(base: Optimizer, names: Mapping[Tensor, Tensor]) -> None:
    """Give states to other tensors; each stays in its place, by which states are saved."""
    states = [(names.get(key, key), state) for key, state in base.state.items()]
    base.state.clear()
    base.state.update(states)


@torch.no_grad()
def _take_back(parameter: Tensor, other: Tensor, point: Tensor) -> None:
    point.copy_(other)  # from itself, unless the base has set other data
    if other.grad is None:
        parameter.grad = None
