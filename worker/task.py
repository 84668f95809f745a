"""What a task makes of logits: the loss to train on, and the scores of each held-out example.

Both tasks of today are cross entropy over the last axis. They differ in what one example is, an
image or a window of tokens, and in the metrics that people compare.
"""

import math

import torch
from torch.nn import functional

from service.contract.tasks import Task

#: Rows of what :func:`example_scores` returns: the loss in nats, and the share of right answers.
SCORES = ("loss", "accuracy")


def training_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean loss over the samples of this rank in nats, a scalar to differentiate.

    ``logits``: (samples, ..., classes); ``targets``: (samples, ...), integers.
    """
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def example_scores(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return float64 of shape (len(SCORES), samples); for tokens, means over the sample's tokens.

    Shapes of the arguments as in :func:`training_loss`.
    """
    flat_logits, flat_targets = logits.flatten(0, -2), targets.flatten()
    losses = functional.cross_entropy(flat_logits, flat_targets, reduction="none")
    hits = flat_logits.argmax(dim=-1) == flat_targets
    scores = torch.stack([losses.double(), hits.double()])
    return scores.reshape(len(SCORES), len(targets), -1).mean(dim=-1)


def metrics(task: Task, *, loss: float, accuracy: float) -> dict[str, float]:
    """Return what is reported beside the loss, from the means over all held-out examples."""
    match task:
        case "classification":
            return {"eval.accuracy": accuracy}
        case "causal_lm":
            return {"eval.accuracy": accuracy, "eval.bits_per_byte": loss / math.log(2)}
