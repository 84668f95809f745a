"""What does a cosine cost whose cycle is longer than the run? (cosine cycles)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.schedules.schedules import CosineSchedule, compute_optimal_base
from tests.studies.theory.record import SEQUENCE, Row, Study, plain_ticks

T = 400
CYCLES = (1.0, 1.5, 2.0, 4.0, 5.0)
SWEEP = np.geomspace(2**-8, 0.5, 40)


@cache
def cosine(cycle: float) -> CosineSchedule:
    """A cosine to a tenth, for a run ``cycle`` times as long."""
    return CosineSchedule(final_lr=0.1, steps=int(cycle * (T + 1)))


@cache
def tuned(cycle: float) -> tuple[float, float]:
    """Its best rate and bound after T steps."""
    return compute_optimal_base(cosine(cycle), G=1.0, D=1.0, T=T)


def rows() -> list[Row]:
    """Best rates and bounds of all cycles."""
    return [
        row
        for cycle in CYCLES
        for row in (
            Row(f"cycle {cycle:g}: gamma*", tuned(cycle)[0]),
            Row(f"cycle {cycle:g}: Omega*", tuned(cycle)[1], decimals=5),
        )
    ]


def draw(axes: Sequence[Any]) -> None:
    """The bound over the rate; the rates; and the bound along the runs at cycle 1's rate."""
    sweep, shape, along = axes
    steps = np.arange(1, T + 1)
    for cycle, colour in zip(CYCLES, SEQUENCE[1:], strict=False):
        one = CosineSchedule(final_lr=0.1, steps=int(cycle * (T + 1)))
        bounds = []
        for lr in SWEEP:
            one.set_base_lr(lr)
            bounds.append(one.compute_rate(1.0, 1.0, T))
        sweep.plot(SWEEP, bounds, color=colour)
        sweep.plot(*tuned(cycle), "o", color=colour, ms=4)
        one.set_base_lr(tuned(1.0)[0])
        shape.plot(steps, one.schedule[:T], color=colour, label=f"{cycle:g}")
        along.plot(steps, one.compute_rate(1.0, 1.0, steps), color=colour)
    sweep.set(xlabel=r"base rate $\gamma$", ylabel=r"bound $\Omega_T$", xscale="log", yscale="log")
    sweep.set_ylim(0.09, 1)
    shape.set(xlabel="step $t$", ylabel=r"rate $\eta_t$", ylim=(0, None))
    along.set(xlabel="step $t$", ylabel=r"bound $\Omega_t$", ylim=(0.08, 0.4))
    plain_ticks(sweep, x=(0.01, 0.1), y=(0.1, 0.2, 0.5, 1))
    shape.legend(title="cycle / run", ncols=2, loc="lower left")


STUDY = Study(
    "cosine-cycle",
    "Cosines to a tenth whose cycle is as long as the run, or longer. Middle and right: at the "
    "rate that is best for cycle 1. The cycle must match the horizon: a reason to do without.",
    rows,
    draw,
    num_panels=3,
)
