"""Batch-norm statistics at the current parameters, computed without affecting training.

The running statistics of training belong to y. A model evaluated at x needs those of x: exact ones
over given batches, in a form that many processes can share.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from roadless.optim.numerics.sharding import block_elements


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of one layer's inputs, by channel (C), in float64."""

    #: Values in each channel, shape ().
    count: Tensor
    #: Mean, shape (C,).
    mean: Tensor
    #: Variance, divided by the count, shape (C,).
    var: Tensor


_STATISTICS = ("running_mean", "running_var")

#: By the layer's name in the model.
BatchStatistics = dict[str, Moments]


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
) -> dict[str, Tensor]:
    """Compute exact batch-norm statistics over all batches, at the current parameters.

    True averages over all values, not running ones. The model's buffers, its training modes and
    torch's random state are restored afterwards. A model without batch norm costs nothing.

    Args:
        model: the bare model, not its distributed wrapper.
        batches: at least one; each holds more than one value per channel.
        forward: runs the model on one batch; None calls ``model(batch)``.

    Returns:
        ``running_mean`` and ``running_var`` of each layer that tracks them, by their name in
        ``model.state_dict()``, for `using_buffers`; empty without such layers.

    Raises:
        ValueError: there is no batch.

    >>> import torch
    >>> from roadless.optim import recalibrate
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    >>> batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])]
    >>> {name: buffer.item() for name, buffer in recalibrate(model, batches).items()}
    {'0.running_mean': 2.0, '0.running_var': 4.666666666666667}
    >>> model[0].running_mean
    tensor([0.])
    """
    if not _tracking_layers(model):
        return {}
    return combine([batch_statistics(model, batch, forward=forward) for batch in batches])


@torch.no_grad()
def batch_statistics(
    model: nn.Module, batch: Any, *, forward: Callable[[Any], object] | None = None
) -> BatchStatistics:
    """Run one batch and return the moments of each batch-norm layer's inputs.

    Each layer normalises by the batch's own statistics, as in training; all else is as in
    evaluation, so dropout is off. There is no communication with other processes, and the result
    depends only on the batch, not on the process that computes it.

    Args:
        model: the bare model, not its distributed wrapper.
        batch: what ``forward`` takes.
        forward: runs the model on the batch; None calls ``model(batch)``.

    Returns:
        Moments by layer name, for `combine`; empty without layers that track statistics.

    Source: Wu and Johnson 2021, "Rethinking Batch in BatchNorm", arXiv 2105.07576, section 3.
    """
    layers = _tracking_layers(model)
    if not layers:
        return {}
    seen: dict[str, list[Moments]] = {name: [] for name in layers}
    # In evaluation, a layer without running statistics uses the batch's, and has none to change.
    hidden = {_buffer_name(name, leaf): None for name in layers for leaf in _STATISTICS}
    with _in_evaluation(model), _swapped(model, hidden), ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(_observe, seen[name])).remove)
        (forward or model)(batch)
    return {name: reduce(_merge, moments) for name, moments in seen.items() if moments}


def combine(statistics: Sequence[BatchStatistics]) -> dict[str, Tensor]:
    """Pool the statistics of batches, in the given order, into buffers for all of them.

    Sums run in float64 in that order, so ranks that share their batches' statistics and sort them
    by batch get the same bits at any world size.

    Args:
        statistics: one per batch, at least one.

    Returns:
        ``running_mean``, and ``running_var`` with the n / (n - 1) that batch norm applies to it, in
        float64, by buffer name. ``num_batches_tracked`` is left out: it counts training batches.

    Raises:
        ValueError: there is no batch.
    """
    if not statistics:
        raise ValueError("batches: expected at least one, seen none")
    names = dict.fromkeys(name for batch in statistics for name in batch)
    buffers: dict[str, Tensor] = {}
    for name in names:
        whole = reduce(_merge, (batch[name] for batch in statistics if name in batch))
        buffers[_buffer_name(name, "running_mean")] = whole.mean
        buffers[_buffer_name(name, "running_var")] = whole.var * whole.count / (whole.count - 1)
    return buffers


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
    with _swapped(model, copies):
        yield


def _tracking_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _observe(seen: list[Moments], _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(_moments(inputs[0]))


def _moments(values: Tensor) -> Moments:
    """Compute the mean, then the variance about it, in blocks that fit in a cache.

    As exact as ``torch.var_mean`` of all in float64, which takes about ten times as long on a CPU.
    """
    channels = values.shape[1]
    dims = [dim for dim in range(values.dim()) if dim != 1]
    as_values = [1, channels, *([1] * (values.dim() - 2))]
    blocks = torch.split(values, max(1, block_elements(values) // values[0].numel()))
    count = values.new_tensor(values.numel() // channels, dtype=torch.float64)
    mean = _added(block.double().sum(dims) for block in blocks) / count
    centre = mean.view(as_values)
    squares = _added((block.double() - centre).square_().sum(dims) for block in blocks)
    return Moments(count=count, mean=mean, var=squares / count)


def _added(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _merge(a: Moments, b: Moments) -> Moments:
    """Pool two by the law of total variance: the mean of variances plus the variance of means."""
    count = a.count + b.count
    share_a, share_b = a.count / count, b.count / count
    distance = b.mean - a.mean
    return Moments(
        count=count,
        mean=a.mean + share_b * distance,
        var=share_a * a.var + share_b * b.var + share_a * share_b * distance**2,
    )


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


@contextmanager
def _swapped(model: nn.Module, values: Mapping[str, Tensor | None]) -> Iterator[None]:
    held = {name: _buffer(model, name) for name in values}
    try:
        _set_buffers(model, values)
        yield
    finally:
        _set_buffers(model, held)


def _set_buffers(model: nn.Module, values: Mapping[str, Tensor | None]) -> None:
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, value)


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


def _buffer_name(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf
