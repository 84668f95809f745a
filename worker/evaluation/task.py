"""What a task computes from outputs: the loss to train on, and the scores of each held-out example.

Classification and language models are cross entropy over the last axis and differ in what one
example is, an image or a window of tokens; regression is the squared error. A target of
:data:`roadless.worker.data.base.UNCOUNTED` is neither learned nor scored.
"""

import math
from collections.abc import Mapping
from typing import assert_never

import torch
from torch.nn import functional

from roadless.service.contract.job.tasks import Task
from roadless.worker.data.base import UNCOUNTED, Batch

#: With five or fewer classes the right one is always among five guesses.
TOP5_CLASSES = 6
_TOP = 5


def training_loss(
    outputs: torch.Tensor, targets: torch.Tensor, *, task: Task, count: int
) -> torch.Tensor:
    """Return the mean loss over this batch's counted targets, a scalar to differentiate.

    ``outputs``: (samples, ..., classes), in regression (samples, targets); ``targets``:
    (samples, ...), class numbers, in regression numbers. ``count``: from :func:`num_counted`.
    Nats, or squared units.
    """
    if task == "regression":
        return functional.mse_loss(outputs.flatten(1), targets.reshape(len(outputs), -1))
    flat, scores = targets.flatten(), outputs.flatten(0, -2)
    if count == len(flat):
        return functional.cross_entropy(scores, flat)
    total = functional.cross_entropy(scores, flat, ignore_index=UNCOUNTED, reduction="sum")
    # A batch without any counted target teaches nothing; its mean would be 0 / 0.
    return total / max(count, 1)


def num_counted(batch: Batch, *, task: Task) -> int:
    """Return how many targets :func:`training_loss` is the mean of."""
    if task == "regression" or not batch.has_uncounted:
        return batch.targets.numel()
    return int(torch.count_nonzero(batch.targets != UNCOUNTED))


def score_names(task: Task, *, num_classes: int) -> tuple[str, ...]:
    """Return names of the rows of :func:`example_scores` but the first; the loss comes first."""
    match task:
        case "classification":
            top5 = ("top5_accuracy",) if num_classes >= TOP5_CLASSES else ()
            return ("loss", "accuracy", *top5)
        case "causal_lm":
            return ("loss", "accuracy")
        case "regression":
            return ("mse", "mae")
        case _:
            assert_never(task)


def example_scores(
    outputs: torch.Tensor, targets: torch.Tensor, *, names: tuple[str, ...]
) -> torch.Tensor:
    """Return float64 of shape (1 + names, samples): number of counted targets, then sums over them.

    ``names``: from :func:`score_names`. Shapes of the others as in :func:`training_loss`; outputs
    are :func:`widened` first.
    """
    wide = widened(outputs)
    if "mse" in names:
        return _errors(wide, targets)
    return _guesses(wide.flatten(0, -2), targets, names=names)


def widened(outputs: torch.Tensor) -> torch.Tensor:
    """Return outputs to score: those narrower than float32 as float32."""
    return outputs.float() if outputs.dtype.itemsize < torch.float32.itemsize else outputs


def _errors(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    errors = (outputs.flatten(1) - targets.reshape(len(outputs), -1)).double()
    return torch.stack([torch.ones_like(errors), errors.square(), errors.abs()]).sum(dim=-1)


def _guesses(
    outputs: torch.Tensor, targets: torch.Tensor, *, names: tuple[str, ...]
) -> torch.Tensor:
    flat = targets.flatten()
    losses = functional.cross_entropy(outputs, flat, ignore_index=UNCOUNTED, reduction="none")
    is_number = ~losses.isnan()  # with NaN outputs, any guess comes first
    rows = [flat != UNCOUNTED, losses, (outputs.argmax(dim=-1) == flat) & is_number]
    if "top5_accuracy" in names:
        rows.append((_places(outputs, flat) < _TOP) & rows[0] & is_number)
    scores = torch.stack([row.double() for row in rows])
    return scores.reshape(len(rows), len(targets), -1).sum(dim=-1)


def _places(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return how many classes are guessed before each sample's own; of equal ones the lower first.

    ``argmax`` breaks ties so, and ``topk`` in no order that it states: among equal outputs its five
    may lack the class that ``argmax`` names (torch 2.13, CPU; narrow outputs are often equal).
    """
    own = targets.clamp(min=0)[:, None]
    score = outputs.gather(-1, own)
    is_lower = torch.arange(outputs.shape[-1], device=outputs.device) < own
    return ((outputs > score) | ((outputs == score) & is_lower)).sum(dim=-1)


def metrics(
    task: Task, means: Mapping[str, float], *, bytes_per_token: float = 0.0
) -> dict[str, float]:
    """Return what is reported beside the loss, by name.

    ``means``: of each score, by name, over all counted targets. ``bytes_per_token``: of the
    held-out text; 0 where it is not known.
    """
    if task != "causal_lm":
        return {name: mean for name, mean in means.items() if name != "loss"}
    bits = means["loss"] / math.log(2)
    per_byte = {"bits_per_byte": bits / bytes_per_token} if bytes_per_token else {}
    return {
        "accuracy": means["accuracy"],
        "bits_per_token": bits,
        "perplexity": _exponential(means["loss"]),
        **per_byte,
    }


def _exponential(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
