"""Which schedule has the smallest bound of all? (optimisation of the schedule itself)"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roadless.optim.planning import Family, best_base
from roadless.optim.theory.bounds import Floats, bound
from tests.studies.theory.record import COLOURS, SEQUENCE, Row, Study

T = 100
NUM_STEPS = 4000
LEARNING_RATE = 0.1
MOMENTUM = 0.9
#: Rates stay above this, where the bound exists.
LOWEST = 1e-18
SHOWN = (0, 10, 30, 100, 300, 1000, NUM_STEPS)


@dataclass(frozen=True, slots=True)
class Search:
    """Bounds along the search, and the rates at the steps that are shown."""

    bounds: Floats
    rates: dict[int, Floats]


def differentiable_bound(eta: Tensor) -> Tensor:
    """The refined bound with G = D = 1, in tail sums, for torch to differentiate."""
    backward = eta.flip(0)
    B, C = backward.cumsum(0), (backward**2).cumsum(0)
    last = (backward[1:] / B[:-1] * (C[1:] / B[1:])).sum()
    return (1 + C[-1]) / (2 * B[-1]) + last / 2


@cache
def search(num_steps: int = NUM_STEPS) -> Search:
    """Projected gradient descent on the bound, from a constant rate."""
    eta = torch.ones(T, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.SGD([eta], lr=LEARNING_RATE, momentum=MOMENTUM, dampening=MOMENTUM)
    bounds, rates = [], {}
    for step in range(num_steps + 1):
        descent.zero_grad()
        value = differentiable_bound(eta)
        bounds.append(value.item())
        if step in SHOWN:
            rates[step] = eta.detach().numpy().copy()
        value.backward()
        descent.step()
        eta.data.clamp_(min=LOWEST)
    return Search(bounds=np.array(bounds), rates=rates)


def linear_rates() -> Floats:
    """Linear decay at its best rate."""
    return best_base(Family("linear"), horizon=T).rates


def rows() -> list[Row]:
    """How near the search comes to linear decay."""
    found, linear = search().rates[NUM_STEPS], linear_rates()
    away = np.abs(found / found.max() - linear / linear.max())
    return [
        Row("bound of tuned linear decay, T = 100", bound(linear, 1.0, D=1.0), decimals=6),
        Row("bound of the schedule that was found", bound(found, 1.0, D=1.0), decimals=6),
        Row("largest difference of the shapes, last rate apart", float(away[:-1].max())),
        Row("difference at the last rate", float(away[-1])),
    ]


def draw(axes: Sequence[Any]) -> None:
    """The bound along the search; the schedules on the way."""
    bounds, shapes = axes
    bounds.plot(np.arange(1, NUM_STEPS + 2), search().bounds, color=COLOURS["wsd"], label="search")
    best = bound(linear_rates(), 1.0, D=1.0)
    bounds.axhline(best, color=COLOURS["linear"], ls="--", label="linear decay, tuned")
    bounds.set(xlabel="step of the search", ylabel=r"bound $\Omega_T$", xscale="log", ylim=(0, 3.2))
    for step, colour in zip(SHOWN, SEQUENCE, strict=True):
        rates = search().rates[step]
        shapes.plot(np.arange(1, T + 1), rates / rates.max(), color=colour, label=f"{step:,}")
    shape = linear_rates() / linear_rates().max()
    shapes.plot(np.arange(1, T + 1), shape, "--", color="black", lw=1, label="linear")
    shapes.set(xlabel="step $t$", ylabel=r"$\eta_t \, / \, \max \eta$", ylim=(0, 1.05))
    bounds.legend()
    shapes.legend(title="after steps", fontsize=7, loc="lower left", ncols=2)


STUDY = Study(
    "best-schedule",
    "Gradient descent on the bound over all 100 rates, from a constant. It finds linear "
    "decay, but for the last rate, which moves no iterate that is bounded.",
    rows,
    draw,
)
