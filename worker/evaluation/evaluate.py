"""Evaluation on held-out data, with a result that does not depend on the number of ranks.

A batch is computed whole by one rank, its scores are sent as float64, and sums are taken in the
order of the data. So one rank, many ranks and a stranger with the downloaded checkpoint get the
same bits. Putting the averaged point x into the model is up to the caller.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from roadless.optim.batchnorm import (
    batch_statistics,
    blank_statistics,
    combine,
    packed,
    unpacked,
)
from roadless.service.contract.checkpoint.manifest import SetReceipt
from roadless.service.contract.job.evaluation import EvaluationSpec
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.job.tasks import Task
from roadless.worker.data.base import Batch, Description, EvalSplit, TrainSplit
from roadless.worker.data.sampler import global_indices, reserved_seed
from roadless.worker.errors import DataInvalid
from roadless.worker.evaluation.custom_metrics import CustomMetric
from roadless.worker.evaluation.sets import Datasets, naming
from roadless.worker.evaluation.task import example_scores, score_names, widened
from roadless.worker.evaluation.task import metrics as task_metrics
from roadless.worker.model.base import evaluating
from roadless.worker.model.faults import run

#: Sums a float64 CPU tensor over all ranks, element by element; for one rank, the identity.
#: Each element is non-zero on one rank only, which makes the sum exact.
Gather = Callable[[torch.Tensor], torch.Tensor]


#: How many batches of an evaluation a fresh process recomputes before a checkpoint is listed.
CHECKED_BATCHES = 8


def noop() -> None:
    """Do nothing; the default of callbacks."""


@dataclass(frozen=True)
class Checked:
    """The loss over the first examples of an evaluation, which is cheap to recompute."""

    num_examples: int
    loss: float


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found; all means over the counted targets of ``num_examples`` examples.

    ``metrics``: by full name, those of further sets included.
    """

    loss: float
    metrics: dict[str, float]
    num_examples: int
    checked: Checked


def evaluate_all(
    model: nn.Module,
    *,
    datasets: Datasets,
    spec: JobSpec,
    rank: int,
    world_size: int,
    gather: Gather,
    on_batch: Callable[[], None] = noop,
) -> EvalResult:
    """Score the model as it is on the validation split, and then on each further set.

    Scores of a further set are among the metrics, under its name: ``eval.shifted.loss``. As with
    :func:`evaluate`, every rank calls this and gets the same result.
    """
    score = partial(
        evaluate,
        model,
        task=spec.task,
        metrics=datasets.metrics,
        rank=rank,
        world_size=world_size,
        gather=gather,
        on_batch=on_batch,
    )
    result = score(data=datasets.validation, spec=spec.evaluation)
    found = dict(result.metrics)
    for one in datasets.named:
        with naming(one.name):
            of_set = score(data=one.data, spec=one.spec(spec.evaluation))
        found |= _under(one.name, of_set)
    return replace(result, metrics=found)


def evaluate(
    model: nn.Module,
    *,
    data: EvalSplit,
    task: Task,
    spec: EvaluationSpec,
    metrics: tuple[CustomMetric, ...] = (),
    rank: int,
    world_size: int,
    gather: Gather,
    on_batch: Callable[[], None] = noop,
) -> EvalResult:
    """Score the model as it is on the first ``spec.max_batches`` held-out batches.

    ``model`` is the bare module, not its DDP wrapper. ``metrics``: beside those of the task. Every
    rank calls this and gets the same result. Draws no random numbers and leaves every module in the
    mode it was in. Raises DataInvalid when no target counts, and MetricInvalid for a bad metric.
    """
    num_examples = num_evaluated(data, spec=spec)
    names = score_names(task, num_classes=data.description.num_classes)
    scores = torch.zeros(1 + len(names) + len(metrics), num_examples, dtype=torch.float64)
    device = _device(model)
    num_batches = -(-num_examples // spec.batch_size)
    with evaluating(model), torch.no_grad():
        for number, is_mine in _turns(model, num_batches, rank=rank, world_size=world_size):
            start = number * spec.batch_size
            stop = min(start + spec.batch_size, num_examples)
            batch = data.eval_batch(start, stop).to(device)
            outputs = run(model, batch.inputs)
            if is_mine:
                found = _scores(outputs, batch.targets, names, metrics)
                scores[:, start:stop] = found + 0.0  # a sum over ranks has no negative zero
            on_batch()
    scores = gather(scores)
    checked = _checked(scores, batch_size=spec.batch_size)
    return _result(scores, names, metrics, task=task, description=data.description, checked=checked)


def _scores(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    names: tuple[str, ...],
    metrics: tuple[CustomMetric, ...],
) -> torch.Tensor:
    """Return float64 of shape (1 + names + metrics, samples) on the CPU."""
    found = example_scores(outputs, targets, names=names).cpu()
    if not metrics:
        return found
    counts = found[:1] > 0
    wide = widened(outputs)
    custom = torch.stack([metric.scores(wide, targets).cpu() for metric in metrics])
    # Not multiplied: the value of a sample that does not count may be NaN.
    return torch.cat([found, custom.where(counts, 0.0)])


def _result(
    scores: torch.Tensor,
    names: tuple[str, ...],
    metrics: tuple[CustomMetric, ...],
    *,
    task: Task,
    description: Description,
    checked: Checked,
) -> EvalResult:
    """Make a result of the scores of all samples, of shape (1 + names + metrics, samples)."""
    num_examples = scores.shape[1]
    num_targets, *sums = (_sum_in_order(row) for row in scores)
    if not num_targets:
        raise DataInvalid(f"expected targets to score in {num_examples} held-out samples, saw none")
    means = {name: total / num_targets for name, total in zip(names, sums, strict=False)}
    num_counted = int((scores[0] > 0).sum())
    custom = {
        metric.name: total / num_counted
        for metric, total in zip(metrics, sums[len(names) :], strict=True)
    }
    reported = task_metrics(task, means, bytes_per_token=description.bytes_per_token) | custom
    named = {f"eval.{name}": value for name, value in reported.items()}
    return EvalResult(means[names[0]], named, num_examples, checked)


def _under(name: str, result: EvalResult) -> dict[str, float]:
    """The results of a further set, by full name."""
    told = {"eval.loss": result.loss, **result.metrics}
    return {key.replace("eval.", f"eval.{name}.", 1): value for key, value in told.items()}


def reevaluate(
    model: nn.Module,
    *,
    datasets: Datasets,
    spec: JobSpec,
    on_batch: Callable[[], None] = noop,
) -> EvalResult:
    """Evaluate in this process alone, as a receipt requires: the same function, the same bits."""
    return evaluate_all(
        model,
        datasets=datasets,
        spec=spec,
        rank=0,
        world_size=1,
        gather=lambda scores: scores,
        on_batch=on_batch,
    )


def num_evaluated(data: EvalSplit, *, spec: EvaluationSpec) -> int:
    """Return how many held-out examples an evaluation looks at."""
    if spec.max_batches is None:
        return data.num_eval
    return min(data.num_eval, spec.max_batches * spec.batch_size)


def num_passes(model: nn.Module, *, datasets: Datasets, spec: EvaluationSpec) -> int:
    """Return how many passes of one sample through the model an evaluation of x costs in all.

    A pass for batch-norm statistics counts twice: they cost about as much as the pass.
    """
    num_samples = num_evaluated(datasets.validation, spec=spec) * (2 if spec.at_y else 1)
    num_samples += sum(num_evaluated(one.data, spec=one.spec(spec)) for one in datasets.named)
    if not blank_statistics(model):
        return num_samples
    return num_samples + 2 * spec.batchnorm_batches * min(spec.batch_size, datasets.train.num_train)


def set_receipts(datasets: Datasets, *, spec: EvaluationSpec) -> dict[str, SetReceipt]:
    """Return what a receipt records of each further set."""
    return {
        one.name: SetReceipt(
            num_examples=num_evaluated(one.data, spec=one.spec(spec)),
            max_batches=one.max_batches,
            data_fingerprint=one.data.description.fingerprint,
        )
        for one in datasets.named
    }


def recalibrated_buffers(
    model: nn.Module,
    *,
    data: TrainSplit,
    spec: EvaluationSpec,
    seed: int,
    rank: int,
    world_size: int,
    gather: Gather,
    on_batch: Callable[[], None] = noop,
) -> dict[str, torch.Tensor]:
    """Return the buffers of norm layers for the current parameters, for ``using_buffers``.

    ``model`` is the bare module, not its DDP wrapper; ``seed`` is the job's, in [0, 2**63). Reads
    ``spec.batchnorm_batches`` batches of ``spec.batch_size`` training samples, or of all if fewer,
    in an order that training never uses. Every rank calls this and gets the same float64 values; a
    model that tracks no statistics gets ``{}`` and nothing is exchanged.
    """
    blank = blank_statistics(model)
    if not blank:
        return {}
    num_columns = len(packed(blank, like=blank))
    table = torch.zeros(spec.batchnorm_batches, num_columns, dtype=torch.float64)
    turns = _turns(model, spec.batchnorm_batches, rank=rank, world_size=world_size)
    for row, is_mine in turns:
        batch = _recalibration_batch(row, data=data, spec=spec, seed=seed).to(_device(model))
        found = batch_statistics(model, batch.inputs, forward=partial(run, model))
        if is_mine:
            table[row] = packed(found, like=blank)
        on_batch()
    return combine([unpacked(row, like=blank) for row in gather(table)])


def _turns(
    model: nn.Module, num_batches: int, *, rank: int, world_size: int
) -> Iterator[tuple[int, bool]]:
    """Yield the batches that this rank computes, and whether they are its own.

    Shards are gathered by all ranks together, so a rank without a batch in the last round
    computes the last one with the others, and discards it.
    """
    is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    for first in range(0, num_batches, world_size):
        is_mine = first + rank < num_batches
        if is_mine or is_sharded:
            yield min(first + rank, num_batches - 1), is_mine


def _checked(scores: torch.Tensor, *, batch_size: int) -> Checked:
    """The mean over the first batches, or over all if no target of those counts."""
    first = scores[:2, : CHECKED_BATCHES * batch_size]
    if not first[0].any():
        first = scores[:2]
    num_targets, loss = (_sum_in_order(row) for row in first)
    return Checked(first.shape[1], loss / num_targets if num_targets else math.nan)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _sum_in_order(values: torch.Tensor) -> float:
    # accumulate adds strictly from left to right; sum() regroups by length and number of threads
    return float(np.add.accumulate(values.numpy())[-1])


def _recalibration_batch(
    number: int, *, data: TrainSplit, spec: EvaluationSpec, seed: int
) -> Batch:
    indices = global_indices(
        number,
        batch_size=min(spec.batch_size, data.num_train),
        num_train=data.num_train,
        seed=reserved_seed(seed),
    )
    return data.train_batch(indices)
