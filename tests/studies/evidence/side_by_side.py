"""Many runs of a linear model in one: all rates and seeds advance together, step by step.

The optimizers used here move every number by its own gradients alone, so runs that lie side by side
in a tensor do not touch each other. A rate is a parameter group; its tensor holds all seeds.

Shape letters: R rates, S seeds, T steps, and those of `tests.studies.evidence.linear_models`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roadless.optim import averaged_point
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer
from tests.studies.evidence.linear_models import LinearModel
from tests.studies.evidence.schedules import Factors

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """An optimizer, and a schedule for a run of known length."""

    name: str
    make: Callable[[Groups], torch.optim.Optimizer]
    #: Number of steps to the factors of the rate, (T,).
    factors: Callable[[int], Factors]


@dataclass(frozen=True)
class Scores:
    """What was found after one step, on all examples; arrays are (R, S)."""

    step: int
    losses: NDArray[np.float64]
    accuracies: NDArray[np.float64]


class PolyakAdamW(torch.optim.AdamW):
    """AdamW whose result is the plain mean of all points that it has been at."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """Take a step, and let the means see it."""
        super().step(closure)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            state = self.state[parameter]
            mean = state.setdefault("mean", parameter.detach().clone())
            mean.lerp_(parameter.detach(), 1 / float(state["step"]))

    def means(self, parameters: list[Tensor]) -> list[Tensor]:
        """Return the mean of each of these parameters."""
        return [self.state[parameter]["mean"] for parameter in parameters]


def train(
    model: LinearModel,
    method: Method,
    *,
    rates: Sequence[float],
    orders_STB: Tensor,
    score_at: Sequence[int],
) -> Iterator[Scores]:
    """Train from zero with every rate and every order of examples; score after some steps.

    Args:
        model: the problem.
        method: told the number of steps T, as a schedule must be.
        rates: peak learning rates, R of them.
        orders_STB: numbers of examples.
        score_at: steps from 1 to T after which to score, ascending.
    """
    num_seeds, num_steps, _ = orders_STB.shape
    shape = (num_seeds, model.inputs.shape[1], model.num_scores)
    weights = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for _ in rates]
    groups = [{"params": [w], "lr": rate} for w, rate in zip(weights, rates, strict=True)]
    optimizer = method.make(groups)
    factors = method.factors(num_steps)
    for step in range(num_steps):
        _set_rates(optimizer, rates, factor=float(factors[step]))
        _backward(model, weights, orders_STB[:, step])
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in score_at:
            yield _score(model, _result(optimizer, weights), step=step + 1)


def _set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float], *, factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def _backward(model: LinearModel, weights: list[Tensor], examples_SB: Tensor) -> None:
    """Give each run the gradient of its own mean loss: a sum over runs has those as its parts."""
    inputs_SBF, targets_SB = model.inputs[examples_SB], model.targets[examples_SB]
    scores_RSBC = inputs_SBF @ torch.stack(weights)
    losses_RSB = model.losses(scores_RSBC, targets_SB.expand(scores_RSBC.shape[:-1]))
    losses_RSB.mean(-1).sum().backward()  # type: ignore[no-untyped-call]


def _result(optimizer: torch.optim.Optimizer, weights: list[Tensor]) -> list[Tensor]:
    """Return what a user would take away: the averaged point where there is one."""
    match optimizer:
        case ScheduleFreeOptimizer():
            averaged = averaged_point(optimizer)
            return [averaged[w] for w in weights]
        case PolyakAdamW():
            return optimizer.means(weights)
        case _:
            return weights


@torch.no_grad()
def _score(model: LinearModel, weights: list[Tensor], *, step: int) -> Scores:
    scores_RSNC = model.inputs @ torch.stack(weights)
    targets_RSN = model.targets.expand(scores_RSNC.shape[:-1])
    loss_RS = model.losses(scores_RSNC, targets_RSN).mean(-1)
    hits_RSN = (model.classes(scores_RSNC) == targets_RSN).double()
    return Scores(step, loss_RS.numpy(), hits_RSN.mean(-1).numpy())
