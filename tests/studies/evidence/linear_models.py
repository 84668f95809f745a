"""Linear models of scikit-learn's breast_cancer data, and the order in which they see it.

Shape letters of names: N examples, F features, B in a batch, S seeds, T steps, C scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn import functional

from roadless.worker.data.sampler import global_indices


@dataclass(frozen=True)
class LinearModel:
    """A convex problem: the mean of a convex loss of linear scores. Training begins at zero."""

    #: (N, F) standardised features and a column of ones, float64.
    inputs: Tensor
    #: (N,) classes 0 and 1.
    targets: Tensor
    num_scores: int
    #: (..., B, C) scores and (..., B) classes to (..., B) losses.
    losses: Callable[[Tensor, Tensor], Tensor]
    #: (..., B, C) scores to (..., B) classes.
    classes: Callable[[Tensor], Tensor]

    @property
    def num_examples(self) -> int:
        """How many examples there are; all are trained on."""
        return len(self.targets)


def softmax_regression() -> LinearModel:
    """Return logistic regression with a score for each class, as in the paper's convex problems."""
    inputs_NF, targets_N = _breast_cancer()
    return LinearModel(inputs_NF, targets_N, 2, _cross_entropy, lambda scores: scores.argmax(-1))


def hinge_classifier() -> LinearModel:
    """Return a linear support vector machine without its penalty."""
    inputs_NF, targets_N = _breast_cancer()
    return LinearModel(inputs_NF, targets_N, 1, _hinge, lambda scores: (scores[..., 0] > 0).long())


def orders(model: LinearModel, *, seeds: Sequence[int], num_steps: int, batch_size: int) -> Tensor:
    """Return the examples of every step, (S, T, B); each epoch has each example once."""
    table = np.empty((len(seeds), num_steps, batch_size), dtype=np.int64)
    for row, seed in enumerate(seeds):
        for step in range(num_steps):
            table[row, step] = global_indices(
                step, batch_size=batch_size, num_train=model.num_examples, seed=seed
            )
    return torch.from_numpy(table % model.num_examples)


def steps_of(model: LinearModel, *, num_epochs: int, batch_size: int) -> int:
    """Return the steps that see each example ``num_epochs`` times, rounded up."""
    return -(-num_epochs * model.num_examples // batch_size)


def _breast_cancer() -> tuple[Tensor, Tensor]:
    inputs_NF, targets_N = load_breast_cancer(return_X_y=True)
    standardised = (inputs_NF - inputs_NF.mean(0)) / inputs_NF.std(0)
    with_bias = np.column_stack([standardised, np.ones(len(targets_N))])
    return torch.from_numpy(with_bias), torch.from_numpy(targets_N.astype(np.int64))


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    flat = functional.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.reshape(scores.shape[:-1])


def _hinge(scores: Tensor, targets: Tensor) -> Tensor:
    signs = 2 * targets - 1
    return functional.relu(1 - signs * scores[..., 0])
