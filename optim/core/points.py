"""The averaged point x as a value or a with-block, never as a mode to keep track of.

Works with every optimizer that can compute x (`Averaged`), whether x is stored or not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from roadless.optim.numerics.autocast import outside_autocast


class Averaged(Protocol):
    """An optimizer whose result is an average of where its parameters have been.

    ``group["train_mode"]`` is true while the group's parameters hold y, false while they hold x.
    """

    param_groups: list[dict[str, Any]]

    def average_into(self, parameter: Tensor, group: dict[str, Any], out: Tensor, /) -> None:
        """Write the averaged point of ``parameter``, a member of ``group``, into ``out``."""

    def remember_training_point(self, parameter: Tensor, y: Tensor, /) -> None:
        """Keep y, which the parameter held before it was given x, if the state needs it."""

    def forget_training_point(self, parameter: Tensor, /) -> None:
        """Drop what `remember_training_point` kept."""


_inside_block: set[Averaged] = set()


def is_at_average(optimizer: Averaged) -> bool:
    """Return whether the optimizer is inside `at_average` now."""
    return optimizer in _inside_block


@torch.no_grad()
@outside_autocast()
def averaged_point(
    optimizer: Averaged, *, out: Mapping[Tensor, Tensor] | None = None
) -> dict[Tensor, Tensor]:
    """Compute x for every parameter of the optimizer; the parameters are only read.

    Args:
        optimizer: a schedule-free optimizer, in any position.
        out: a buffer for every parameter, of its shape; dtype and device may differ, so that x can
            be exported to the CPU. None makes new ones like the parameters.

    Returns:
        The buffers by parameter, in the order of the groups. They hold x, detached.

    Raises:
        ValueError: a buffer is missing, has another shape, or is real for complex numbers.

    >>> import torch
    >>> from roadless.optim import SGDScheduleFree, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = SGDScheduleFree([w], lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     w.grad = torch.ones(2)
    ...     optimizer.step()
    >>> w.detach(), averaged_point(optimizer)[w]
    (tensor([-0.8750, -0.8750]), tensor([-0.7500, -0.7500]))
    """
    members = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    buffers = {p: torch.empty_like(p) if out is None else _buffer_of(p, out) for p, _ in members}
    for parameter, group in members:
        optimizer.average_into(parameter, group, buffers[parameter])
    return buffers


@contextmanager
def at_average(optimizer: Averaged, *, model: nn.Module | None = None) -> Iterator[None]:
    """Let the parameters hold x inside the block; then restore them bit for bit.

    x is written in place and the old values are written back, whatever happens inside, including
    exceptions and in-place changes. In place, so that FSDP and captured graphs, which hold the
    parameters' addresses, see x too. Needs memory for one copy of the parameters. Steps are refused
    inside, and a state saved inside is marked as saved at x.

    Args:
        optimizer: a schedule-free optimizer, in any position.
        model: the owner of the parameters; needed if FSDP shards them (``fully_shard``), as it may
            keep gathered copies from an earlier forward pass, which are dropped on entry and exit.

    Raises:
        RuntimeError: the optimizer is already inside such a block.
        ValueError: parameters are sharded and there is no model.

    >>> import torch
    >>> from roadless.optim import SGDScheduleFree, at_average
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = SGDScheduleFree([w], lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     w.grad = torch.ones(2)
    ...     optimizer.step()
    >>> with at_average(optimizer):
    ...     w.detach()
    tensor([-0.7500, -0.7500])
    >>> w.detach()
    tensor([-0.8750, -0.8750])
    """
    if is_at_average(optimizer):
        raise RuntimeError("at_average(): expected to be entered once, seen inside itself")
    shards = _sharded_modules(optimizer, model)
    held: dict[Tensor, Tensor] = {}
    positions = [(group, group["train_mode"]) for group in optimizer.param_groups]
    _inside_block.add(optimizer)
    try:
        _move_to_average(optimizer, held)
        _drop_gathered(shards)
        yield
    finally:
        _move_back(held)
        _drop_gathered(shards)
        for group, position in positions:
            group["train_mode"] = position
            if position:
                for parameter in group["params"]:
                    optimizer.forget_training_point(parameter)
        _inside_block.discard(optimizer)


@torch.no_grad()
@outside_autocast()
def _move_to_average(optimizer: Averaged, held: dict[Tensor, Tensor]) -> None:
    """Write x into every parameter, after saving its value in ``held``."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            held[parameter] = parameter.detach().clone()
            optimizer.average_into(parameter, group, parameter.data)
            if group["train_mode"]:
                optimizer.remember_training_point(parameter, held[parameter])
        group["train_mode"] = False


@outside_autocast()
def _move_back(held: dict[Tensor, Tensor]) -> None:
    """Write through .data, which autograd does not track: a backward pass may span the block."""
    for parameter, value in held.items():
        parameter.data.copy_(value)


def _sharded_modules(optimizer: Averaged, model: nn.Module | None) -> list[nn.Module]:
    """Return the modules that gather parameters, by their method, as torch may lack the class."""
    if model is not None:
        return [module for module in model.modules() if hasattr(module, "reshard")]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(hasattr(parameter, "full_tensor") for parameter in parameters):
        raise ValueError("model: expected the model, as its parameters are sharded, seen None")
    return []


def _drop_gathered(shards: list[nn.Module]) -> None:
    for module in shards:
        module.reshard()  # type: ignore[operator]  # a method of FSDPModule, not a tensor


def _buffer_of(parameter: Tensor, out: Mapping[Tensor, Tensor]) -> Tensor:
    buffer = out.get(parameter)
    if buffer is None or buffer.shape != parameter.shape:
        seen = "none" if buffer is None else f"shape {tuple(buffer.shape)}"
        raise ValueError(f"out: expected a buffer of shape {tuple(parameter.shape)}, seen {seen}")
    if parameter.is_complex() and not buffer.is_complex():
        raise ValueError(f"out: expected a complex buffer, seen {buffer.dtype}")
    return buffer
