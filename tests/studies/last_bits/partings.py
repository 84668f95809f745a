"""How far two runs of an optimizer part when only last bits differ between them."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from tests.optim.optim_makes import make, step
from tests.studies.last_bits.problems import NUM_STEPS, Network, OneExample, Problem, Valley

#: What is done to the gradients of a step before the optimizer sees them.
Shake = Callable[[list[Tensor]], list[Tensor]]

#: Of the distance gone, in float64. Rounding is 2e-16, and 50 steps add it up.
LIMIT = 1e-8
#: Where a basis turns among directions that a factor hardly sees: √n 2e-16 over the shift, which is
#: SOAP's ε of 1e-8, for each of 50 refreshes.
UNRESOLVED = 1e-6
#: Where steps overshoot along a direction whose second moment is almost nothing, and double what
#: they find there until the moment has grown.
UNSTABLE = 1e-4


def limit_of(name: str, problem: type[Problem]) -> float:
    """Return how far the two may part: `LIMIT`, or what docs/reproducibility.md explains."""
    if name.startswith("PrecondScheduleSF") and problem is Valley:
        return UNSTABLE
    is_soap = name.endswith("SOAP")
    return UNRESOLVED if is_soap and issubclass(problem, (OneExample, Network)) else LIMIT


def ends(name: str, problem: type[Problem], *, shake: Shake = list) -> tuple[Tensor, Tensor]:
    """Return all parameters as one vector, at the start and after `NUM_STEPS` steps."""
    run = problem()
    start, optimizer = _flat(run), make(name, run.parameters)
    for k in range(NUM_STEPS):
        loss, gradients = run.gradients(k)
        step(optimizer, shake(gradients), loss=loss)
    return start, _flat(run)


@cache
def still(name: str, problem: type[Problem]) -> tuple[Tensor, Tensor]:
    """Return the `ends` of the run that nothing shakes."""
    return ends(name, problem)


def parting(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Return the distance of two ends, relative to the distance gone; 0 where both are the same."""
    apart, gone = (one[1] - other[1]).norm(), (one[1] - one[0]).norm()
    return float(apart / gone) if apart else 0.0


class LastBit:
    """Moves each number to a neighbour, up or down by lot; zeros stay, as they do on every CPU."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, gradients: list[Tensor]) -> list[Tensor]:
        return [self._moved(g) for g in gradients]

    def _moved(self, g: Tensor) -> Tensor:
        ups = torch.rand(g.shape, generator=self._generator) < 0.5
        towards = torch.where(ups, math.inf, -math.inf).to(g)
        return torch.where(g == 0, g, torch.nextafter(g, towards))


def _flat(problem: Problem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.parameters])
