"""Evaluation on held-out data, with a result that does not depend on the number of ranks.

A batch is computed whole by one rank, what it found travels as float64, and sums are taken in the
order of the data. So one rank, many ranks and a stranger with the downloaded checkpoint get the
same bits. Putting the averaged point x into the model is the caller's part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from optim.batchnorm import BatchStatistics, Moments, batch_statistics, combine
from service.contract.evaluation import EvaluationSpec
from service.contract.spec import JobSpec
from service.contract.tasks import Task
from worker.data.base import Batch, DataSet
from worker.data.order import global_indices, reserved_seed
from worker.errors import DataInvalid
from worker.model.base import evaluating
from worker.task import example_scores, metrics, score_names

#: Adds a float64 CPU tensor up over all ranks, element by element; for one rank, the identity.
#: Each element is non-zero on one rank only, which makes the sum exact.
Gather = Callable[[torch.Tensor], torch.Tensor]


def unheard() -> None:
    """What is called after each batch where nobody wants to know."""


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found; all means over the counted targets of ``num_examples`` examples."""

    loss: float
    metrics: dict[str, float]
    num_examples: int


def evaluate(
    model: nn.Module,
    *,
    data: DataSet,
    task: Task,
    spec: EvaluationSpec,
    rank: int,
    world_size: int,
    gather: Gather,
    on_batch: Callable[[], None] = unheard,
) -> EvalResult:
    """Score the model as it stands on the first ``spec.max_batches`` held-out batches.

    ``model`` is the bare module, not its DDP wrapper. Every rank calls this and gets the same
    result. Draws no random numbers and leaves every module in the mode that it had. Raises
    DataInvalid when no target counts.
    """
    num_examples = num_evaluated(data, spec=spec)
    names = score_names(task, num_classes=data.description.num_classes)
    scores = torch.zeros(1 + len(names), num_examples, dtype=torch.float64)
    device = _device(model)
    num_batches = -(-num_examples // spec.batch_size)
    with evaluating(model), torch.no_grad():
        for number, is_mine in _turns(model, num_batches, rank=rank, world_size=world_size):
            start = number * spec.batch_size
            stop = min(start + spec.batch_size, num_examples)
            batch = data.eval_batch(start, stop).to(device)
            found = example_scores(model(batch.inputs), batch.targets, names=names)
            if is_mine:
                scores[:, start:stop] = found.cpu()
            on_batch()
    count, *sums = (_sum_in_order(row) for row in gather(scores))
    if not count:
        raise DataInvalid(f"expected targets to score in {num_examples} held-out samples, saw none")
    means = {name: total / count for name, total in zip(names, sums, strict=True)}
    bytes_per_token = data.description.bytes_per_token
    reported = metrics(task, means, bytes_per_token=bytes_per_token)
    return EvalResult(means[names[0]], reported, num_examples)


def reevaluate(model: nn.Module, *, data: DataSet, spec: JobSpec) -> EvalResult:
    """Evaluate on this process alone, as a receipt asks: the same function, the same bits."""
    return evaluate(
        model,
        data=data,
        task=spec.task,
        spec=spec.evaluation,
        rank=0,
        world_size=1,
        gather=lambda scores: scores,
    )


def num_evaluated(data: DataSet, *, spec: EvaluationSpec) -> int:
    """Return how many held-out examples an evaluation looks at."""
    if spec.max_batches is None:
        return data.num_eval
    return min(data.num_eval, spec.max_batches * spec.batch_size)


def recalibrated_buffers(
    model: nn.Module,
    *,
    data: DataSet,
    spec: EvaluationSpec,
    seed: int,
    rank: int,
    world_size: int,
    gather: Gather,
    on_batch: Callable[[], None] = unheard,
) -> dict[str, torch.Tensor]:
    """Return batch-norm buffers for the parameters as they are, for ``optim.using_buffers``.

    ``model`` is the bare module, not its DDP wrapper; ``seed`` is the job's, in [0, 2**63). Reads
    ``spec.batchnorm_batches`` batches of ``spec.batch_size`` training samples, or of all there are,
    in an order that training never uses. Every rank calls this and gets the same float64 values; a
    model that tracks no statistics gets ``{}`` and nothing is exchanged.
    """
    channels = _channels_by_layer(model)
    if not channels:
        return {}
    num_columns = sum(1 + 2 * number for number in channels.values())
    table = torch.zeros(spec.batchnorm_batches, num_columns, dtype=torch.float64)
    turns = _turns(model, spec.batchnorm_batches, rank=rank, world_size=world_size)
    for row, is_mine in turns:
        batch = _recalibration_batch(row, data=data, spec=spec, seed=seed).to(_device(model))
        found = _packed(batch_statistics(model, batch.inputs))
        if is_mine:
            table[row] = found
        on_batch()
    return combine([_unpacked(row, channels) for row in gather(table)])


def _turns(
    model: nn.Module, num_batches: int, *, rank: int, world_size: int
) -> Iterator[tuple[int, bool]]:
    """Yield the batches that this rank computes, and whether they are its own.

    Shards are gathered by all ranks together, so where the last round has no batch for a rank, it
    computes the last one with the others, and for nothing.
    """
    is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    for first in range(0, num_batches, world_size):
        is_mine = first + rank < num_batches
        if is_mine or is_sharded:
            yield min(first + rank, num_batches - 1), is_mine


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _sum_in_order(values: torch.Tensor) -> float:
    # accumulate adds strictly from left to right; sum() regroups by length and number of threads
    return float(np.add.accumulate(values.numpy())[-1])


def _recalibration_batch(number: int, *, data: DataSet, spec: EvaluationSpec, seed: int) -> Batch:
    indices = global_indices(
        number,
        batch_size=min(spec.batch_size, data.num_train),
        num_train=data.num_train,
        seed=reserved_seed(seed),
    )
    return data.train_batch(indices)


def _channels_by_layer(model: nn.Module) -> dict[str, int]:
    return {
        name: module.num_features
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def _packed(statistics: BatchStatistics) -> torch.Tensor:
    parts = [part for m in statistics.values() for part in (m.count.reshape(1), m.mean, m.var)]
    return torch.cat(parts).cpu()


def _unpacked(row: torch.Tensor, channels: dict[str, int]) -> BatchStatistics:
    sizes = [size for number in channels.values() for size in (1, number, number)]
    parts = iter(torch.split(row, sizes))
    return {name: Moments(next(parts)[0], next(parts), next(parts)) for name in channels}
