"""A model's buffers, set aside or replaced for a while, and what passes in training make of them.

Parameters have an averaged point; buffers that training changes, such as running statistics, do
not. `roadless.optim.batchnorm` finds those of x.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TypeGuard

import torch
from torch import Tensor, nn


@contextmanager
def using_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> Iterator[None]:
    """Set the model's named buffers to copies of these values inside the block.

    Values are rounded to the buffer's dtype and moved to its device. Afterwards the model has its
    original buffer tensors back, whatever happened inside.

    Args:
        model: the model that the names belong to.
        buffers: values by name, as in ``model.state_dict()``; may be empty.

    Raises:
        ValueError: the model has no such buffer, or it has another shape.
    """
    copies = {name: _copy_like(_buffer(model, name), value) for name, value in buffers.items()}
    with swapped(model, copies):
        yield


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Set the model's named buffers to these very tensors, or to None, inside the block."""
    held = {name: _buffer(model, name) for name in values}
    try:
        _set_buffers(model, values)
        yield
    finally:
        _set_buffers(model, held)


@contextmanager
def in_modes(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Set ``training`` of each of these modules inside the block."""
    held = {module: module.training for module in modes}
    try:
        _set_modes(modes)
        yield
    finally:
        _set_modes(held)


def training_modes(model: nn.Module) -> dict[nn.Module, bool]:
    """Return for each module whether it is in training mode while the model is trained.

    As it is now; but a model that is in evaluation as a whole was put there for this, so that all
    of it trains.
    """
    modes = {module: module.training for module in model.modules()}
    return modes if any(modes.values()) else dict.fromkeys(modes, True)


def changed_by_pass(
    model: nn.Module,
    run: Callable[[], object],
    *,
    names: Collection[str],
    modes: Mapping[nn.Module, bool],
    start: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return those of the named buffers that a pass in these modes changes, with new values.

    The model keeps its own, and torch's random state is restored.

    Args:
        model: whose buffers.
        run: the pass.
        names: as in ``model.state_dict()``.
        modes: ``training`` by module, inside the pass.
        start: values by name, as an earlier pass returned them; those of the model if omitted.

    A pass that fails in training mode, as that of a model which then wants targets too, is warned
    of, and so is a buffer that changes in shape or dtype.
    """
    before = {name: _buffer(model, name) for name in names}
    with buffers_aside(model), in_modes(modes), torch.no_grad(), _forked_random_state(model):
        _set_buffers(model, start)
        try:
            run()
        except Exception as error:
            _warn(names, f"one that fails: {type(error).__name__}: {error}")
            return {}
        after = {name: _found(model, name) for name in names}
    same = {name: new for name, new in after.items() if _is_like(new, before[name])}
    if len(same) < len(after):
        _warn(after.keys() - same.keys(), "another shape or dtype")
    return {name: new for name, new in same.items() if not torch.equal(new, before[name])}


def persistent_buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the owner and the name of each buffer that the state dict has."""
    for path, module in model.named_modules():
        for name, _ in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield module, buffer_name(path, name)


def _warn(names: Iterable[str], seen: str) -> None:
    warnings.warn(
        f"buffers: expected a pass in training mode that shows what {', '.join(sorted(names))} "
        f"would be at these parameters, seen {seen}; left as training has them",
        stacklevel=4,
    )


@contextmanager
def buffers_aside(model: nn.Module) -> Iterator[None]:
    """Let the model work with copies of its buffers inside the block, ties kept."""
    held = [(module, dict(module._buffers)) for module in model.modules()]
    copies: dict[int, Tensor] = {}
    try:
        for module, buffers in held:
            for name, buffer in buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        yield
    finally:
        for module, buffers in held:
            module._buffers.clear()
            module._buffers.update(buffers)


@contextmanager
def _forked_random_state(model: nn.Module) -> Iterator[None]:
    tensors = chain(model.parameters(), model.buffers())
    devices = {t.device for t in tensors if t.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng([device.index for device in devices], device_type=kind):
        yield


def _is_like(new: Tensor | None, old: Tensor) -> TypeGuard[Tensor]:
    return new is not None and new.shape == old.shape and new.dtype == old.dtype


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, is_training in modes.items():
        module.training = is_training


def _set_buffers(model: nn.Module, values: Mapping[str, Tensor | None]) -> None:
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, value)


def _found(model: nn.Module, name: str) -> Tensor | None:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner)._buffers.get(leaf)


def _buffer(model: nn.Module, name: str) -> Tensor:
    try:
        return model.get_buffer(name)
    except AttributeError as error:
        raise ValueError(
            f"buffers: expected names of the model's buffers, seen {name!r}"
        ) from error


def _copy_like(buffer: Tensor, value: Tensor) -> Tensor:
    if value.shape != buffer.shape:
        raise ValueError(
            f"buffers: expected shape {tuple(buffer.shape)}, seen {tuple(value.shape)}"
        )
    return value.to(device=buffer.device, dtype=buffer.dtype, copy=True)


def buffer_name(path: str, leaf: str) -> str:
    """Return a buffer's name in the model, from its module's path and its own name there."""
    return f"{path}.{leaf}" if path else leaf
