"""Running statistics at the current parameters, computed without affecting training.

The statistics of training belong to y. A model evaluated at x needs those of x: exact ones over
given batches, in a form that many processes can share.

What a model's buffers are at x:

* Batch norm (``SyncBatchNorm`` and the lazy forms included), and instance norm with
  ``track_running_stats``: the exact statistics of all batches.
* Layers whose statistics training does not change keep them: those in evaluation mode while other
  modules train (frozen, as in fine-tuning), and those of ``momentum=0``.
* Other persistent buffers that a pass in training mode changes (power iterations of spectral norm,
  codebooks, queues, normalisers of one's own): what passes over the batches make of them, from
  their present values, at x. Only `recalibrate` does this, since such passes are a sequence that
  processes cannot share. What cannot be found out is warned of by name.
* All others, among them what no checkpoint holds, a table or a cache: as they are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from roadless.optim.buffers import (
    buffer_name,
    buffers_aside,
    changed_by_pass,
    in_modes,
    persistent_buffers,
    swapped,
    training_modes,
    using_buffers,
)
from roadless.optim.numerics.sharding import block_elements


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of a batch-norm layer's inputs, by channel (C), in float64."""

    #: Values in each channel, shape ().
    count: Tensor
    #: Mean, shape (C,).
    mean: Tensor
    #: Variance, divided by the count, shape (C,).
    var: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Compute the mean, then the variance about it, in blocks that fit in a cache.

        As exact as ``torch.var_mean`` of all in float64, which takes about ten times as long on a
        CPU.
        """
        channels = values.shape[1]
        dims = [dim for dim in range(values.dim()) if dim != 1]
        as_values = [1, channels, *([1] * (values.dim() - 2))]
        blocks = _blocks(values)
        count = values.new_tensor(values.numel() // channels, dtype=torch.float64)
        mean = _added(block.double().sum(dims) for block in blocks) / count
        centre = mean.view(as_values)
        squares = _added((block.double() - centre).square_().sum(dims) for block in blocks)
        return cls(count=count, mean=mean, var=squares / count)

    def merged(self, other: Self) -> Self:
        """Pool two by the law of total variance: mean of variances plus variance of means."""
        count = self.count + other.count
        own, others = self.count / count, other.count / count
        distance = other.mean - self.mean
        return replace(
            self,
            count=count,
            mean=self.mean + others * distance,
            var=own * self.var + others * other.var + own * others * distance**2,
        )

    def running_var(self) -> Tensor:
        """Return what the layer keeps: the variance with n / (n - 1).

        Raises:
            ValueError: there is but one value in each channel.
        """
        if self.count <= 1:
            raise ValueError("batches: expected more than one value in each channel, seen one")
        return self.var * self.count / (self.count - 1)


@dataclass(frozen=True, slots=True)
class InstanceMoments:
    """Means over instances of the moments of an instance-norm layer's inputs, in float64."""

    #: Instances, shape ().
    count: Tensor
    #: Mean, by channel, shape (C,).
    mean: Tensor
    #: Unbiased variance within an instance, shape (C,).
    var: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Compute them in blocks that fit in a cache."""
        blocks = [block.double().flatten(2) for block in _blocks(values)]
        count = values.new_tensor(len(values), dtype=torch.float64)
        mean = _added(block.mean(2).sum(0) for block in blocks) / count
        return cls(count, mean, _added(block.var(2).sum(0) for block in blocks) / count)

    def merged(self, other: Self) -> Self:
        """Pool two: means of both, weighted by their instances."""
        count = self.count + other.count
        share = other.count / count
        mean, var = self.mean.lerp(other.mean, share), self.var.lerp(other.var, share)
        return replace(self, count=count, mean=mean, var=var)

    def running_var(self) -> Tensor:
        """Return what the layer keeps."""
        return self.var


_STATISTICS = ("running_mean", "running_var")
_Norm = _BatchNorm | _InstanceNorm

#: By the layer's name in the model.
BatchStatistics = dict[str, Moments | InstanceMoments]


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
) -> dict[str, Tensor]:
    """Compute what the model's buffers are at the current parameters, over all batches.

    Statistics of batch and instance norm are true averages over all values, not running ones; other
    buffers that training changes are what training's passes make of them
    (`roadless.optim.batchnorm`). The model's buffers, its training modes and torch's random state
    are restored afterwards. A model without buffers costs nothing; one that has others than those
    of norm layers, a pass in training mode, and one for each batch where that changes them.

    Args:
        model: the bare model, not its distributed wrapper, in the modes that it trains in: a layer
            in evaluation while others train is frozen, and keeps its statistics. Where all of it is
            in evaluation, frozen layers cannot be told, and none is taken as such.
        batches: at least one; each holds more than one value per channel.
        forward: runs the model on one batch; None calls ``model(batch)``.

    Returns:
        Those buffers by their name in ``model.state_dict()``, for `roadless.optim.using_buffers`:
        ``running_mean`` and ``running_var`` of norm layers, in float64, and others that differ.

    Raises:
        ValueError: there is no batch, one value per channel in all, a lazy layer that has seen no
            batch, or a scripted module with buffers.

    Warns:
        UserWarning: buffers, by name, whose values at x cannot be found out.

    >>> import torch
    >>> from roadless.optim import recalibrate
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    >>> batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])]
    >>> {name: buffer.item() for name, buffer in recalibrate(model, batches).items()}
    {'0.running_mean': 2.0, '0.running_var': 4.666666666666667}
    >>> model[0].running_mean
    tensor([0.])
    """
    _require_python(model)
    names = buffers_besides_statistics(model)
    if not names and not blank_statistics(model):
        return {}
    statistics: list[BatchStatistics] = []
    others: dict[str, Tensor] = {}
    for batch in batches:
        run = partial(forward or model, batch)
        if others or (names and not statistics):
            others |= _changed_by_training(model, run, names=names, start=others)
        with using_buffers(model, others):
            statistics.append(batch_statistics(model, batch, forward=forward))
    return combine(statistics) | others


@torch.no_grad()
def batch_statistics(
    model: nn.Module, batch: Any, *, forward: Callable[[Any], object] | None = None
) -> BatchStatistics:
    """Run one batch and return the moments of each norm layer's inputs.

    Each layer normalises by the batch's own statistics, as in training; all else is as in
    evaluation, so dropout is off, and frozen layers use the statistics that they keep. There is no
    communication with other processes, and the result depends only on the batch, not on the process
    that computes it.

    Args:
        model: the bare model, not its distributed wrapper, in the modes that it trains in.
        batch: what ``forward`` takes.
        forward: runs the model on the batch; None calls ``model(batch)``.

    Returns:
        Moments by layer name, for `combine`; empty without layers that track statistics.

    Raises:
        ValueError: a lazy layer has seen no batch, or a scripted module has buffers.

    Source: Wu and Johnson 2021, "Rethinking Batch in BatchNorm", arXiv 2105.07576, section 3.
    """
    _require_python(model)
    layers = _tracking_layers(model)
    if not layers:
        return {}
    seen: dict[str, list[Any]] = {name: [] for name in layers}
    with (
        buffers_aside(model),
        in_modes(dict.fromkeys(model.modules(), False)),
        _normalising_by_batch(model, layers),
        ExitStack() as hooks,
    ):
        for name, layer in layers.items():
            if _changes_statistics(layer):
                hook = partial(_observe, seen[name])
                handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
        (forward or model)(batch)
    return {name: reduce(_merge, moments) for name, moments in seen.items() if moments}


def combine(statistics: Sequence[BatchStatistics]) -> dict[str, Tensor]:
    """Pool the statistics of batches, in the given order, into buffers for all of them.

    Sums run in float64 in that order, so ranks that share their batches' statistics and sort them
    by batch get the same bits at any world size.

    Args:
        statistics: one per batch, at least one.

    Returns:
        ``running_mean`` and ``running_var`` as the layers keep them, in float64, by buffer name.
        ``num_batches_tracked`` is left out: it counts training batches.

    Raises:
        ValueError: there is no batch, or one value per channel in all.
    """
    if not statistics:
        raise ValueError("batches: expected at least one, seen none")
    names = dict.fromkeys(name for batch in statistics for name in batch)
    buffers: dict[str, Tensor] = {}
    for name in names:
        whole = reduce(_merge, (batch[name] for batch in statistics if name in batch))
        buffers[buffer_name(name, "running_mean")] = whole.mean
        buffers[buffer_name(name, "running_var")] = whole.running_var()
    return buffers


def blank_statistics(model: nn.Module) -> BatchStatistics:
    """Return moments of no values for each layer that `batch_statistics` would look at."""
    layers = _tracking_layers(model).items()
    return {name: _blank(layer) for name, layer in layers if _changes_statistics(layer)}


def packed(statistics: BatchStatistics, *, like: BatchStatistics) -> Tensor:
    """Return all numbers in a row, in the order of ``like``; zeros for layers without moments.

    So that processes can send them to each other.
    """
    parts = [statistics.get(name, blank) for name, blank in like.items()]
    return torch.cat([t.reshape(-1) for m in parts for t in (m.count, m.mean, m.var)]).cpu()


def unpacked(row: Tensor, *, like: BatchStatistics) -> BatchStatistics:
    """Return the moments that `packed` has made a row of."""
    parts = iter(
        torch.split(row, [n for m in like.values() for n in (1, len(m.mean), len(m.mean))])
    )
    found: BatchStatistics = {
        name: replace(blank, count=next(parts)[0], mean=next(parts), var=next(parts))
        for name, blank in like.items()
    }
    return {name: moments for name, moments in found.items() if moments.count}


def tracks_statistics(module: nn.Module) -> bool:
    """Return whether a module is a norm layer with running statistics."""
    return isinstance(module, _Norm) and module.running_mean is not None


def _require_python(model: nn.Module) -> None:
    """Refuse scripted modules with buffers: no hook sees their layers, no buffer is replaced."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and next(module.buffers(), None) is not None:
            raise ValueError(
                f"model: expected modules of Python, seen {name or 'a model'!r} made by torch.jit, "
                "whose statistics cannot be computed aside; script the model after recalibrate()"
            )


def _tracking_layers(model: nn.Module) -> dict[str, Any]:
    """Return the norm layers that train and have running statistics."""
    modes = training_modes(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if tracks_statistics(module) and modes[module]
    }
    for name, layer in layers.items():
        if is_lazy(layer.running_mean):
            raise ValueError(
                f"model: expected layers that know their channels, seen the lazy {name!r}, which "
                "has seen no batch"
            )
    return layers


def _changes_statistics(layer: _Norm) -> bool:
    """Return whether passes in training do. For batch norm no momentum means a cumulative mean."""
    return layer.momentum != 0 and not (layer.momentum is None and isinstance(layer, _InstanceNorm))


@contextmanager
def _normalising_by_batch(model: nn.Module, layers: dict[str, Any]) -> Iterator[None]:
    """Have layers use the batch's statistics and change nothing, not even their counts.

    A layer without running statistics does so: batch norm in evaluation mode, where SyncBatchNorm
    asks no other process; and instance norm in training mode, as its evaluation wants statistics.
    """
    hidden = {buffer_name(name, leaf): None for name in layers for leaf in _STATISTICS}
    modes = {layer: isinstance(layer, _InstanceNorm) for layer in layers.values()}
    with swapped(model, hidden), in_modes(modes):
        yield


def buffers_besides_statistics(model: nn.Module) -> list[str]:
    """Return the names of persistent buffers that are not of norm layers.

    What no checkpoint holds is no statistic, but a table or a cache.
    """
    return [name for owner, name in persistent_buffers(model) if not tracks_statistics(owner)]


def _changed_by_training(
    model: nn.Module,
    run: Callable[[], object],
    *,
    names: Sequence[str],
    start: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Return what a pass in training makes of buffers that are not of norm layers."""
    layers, modes = _tracking_layers(model), training_modes(model)

    def normalising_by_batch() -> None:
        with _normalising_by_batch(model, layers):
            run()

    return changed_by_pass(model, normalising_by_batch, names=names, modes=modes, start=start)


def _observe(
    seen: list[Any], layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
) -> None:
    values = inputs[0] if inputs else named["input"]
    if isinstance(layer, _InstanceNorm):
        is_single = values.dim() == layer._get_no_batch_dim()  # type: ignore[no-untyped-call]
        seen.append(InstanceMoments.of(values.unsqueeze(0) if is_single else values))
    else:
        seen.append(Moments.of(values))


def _merge(a: Any, b: Any) -> Any:
    return a.merged(b)


def _blank(layer: _Norm) -> Moments | InstanceMoments:
    kind = InstanceMoments if isinstance(layer, _InstanceNorm) else Moments
    none = torch.zeros(layer.num_features, dtype=torch.float64, device="cpu")
    return kind(count=none.new_zeros(()), mean=none, var=none)


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    return torch.split(values, max(1, block_elements(values) // values[0].numel()))


def _added(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)
