"""Evaluation on held-out data, with a result that does not depend on the number of ranks.

A batch is computed whole by one rank, what it found travels as float64, and sums are taken in the
order of the data. So one rank, many ranks and a stranger with the downloaded checkpoint get the
same bits. Putting the averaged point x into the model is the caller's part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from optim.batchnorm import BatchStatistics, Moments, batch_statistics, combine
from service.contract.evaluation import EvaluationSpec
from service.contract.spec import JobSpec
from service.contract.tasks import Task
from worker.data.base import Batch, DataSet
from worker.data.order import global_indices, reserved_seed
from worker.task import SCORES, example_scores, metrics

#: Adds a float64 CPU tensor up over all ranks, element by element; for one rank, the identity.
#: Each element is non-zero on one rank only, which makes the sum exact.
Gather = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found; all means over ``num_examples`` examples."""

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
) -> EvalResult:
    """Score the model as it stands on the first ``spec.max_batches`` held-out batches.

    ``model`` is the bare module, not its DDP wrapper. Every rank calls this and gets the same
    result. Draws no random numbers and leaves every module in the mode that it had.
    """
    num_examples = num_evaluated(data, spec=spec)
    scores = torch.zeros(len(SCORES), num_examples, dtype=torch.float64)
    device = _device(model)
    with _evaluating(model), torch.no_grad():
        for start in range(rank * spec.batch_size, num_examples, world_size * spec.batch_size):
            stop = min(start + spec.batch_size, num_examples)
            batch = data.eval_batch(start, stop).to(device)
            scores[:, start:stop] = example_scores(model(batch.inputs), batch.targets).cpu()
    loss, accuracy = (_mean_in_order(row) for row in gather(scores))
    return EvalResult(loss, metrics(task, loss=loss, accuracy=accuracy), num_examples)


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
    for row in range(rank, spec.batchnorm_batches, world_size):
        batch = _recalibration_batch(row, data=data, spec=spec, seed=seed).to(_device(model))
        table[row] = _packed(batch_statistics(model, batch.inputs))
    return combine([_unpacked(row, channels) for row in gather(table)])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _mean_in_order(values: torch.Tensor) -> float:
    # accumulate adds strictly from left to right; sum() regroups by length and number of threads
    return float(np.add.accumulate(values.numpy())[-1]) / len(values)


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
