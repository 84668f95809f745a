"""Six schedules, each at its best rate, and schedule-free beside them. (schedule comparison)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.planning import Assumptions, Family, Plan, best_base, plan_at
from roadless.optim.theory.bounds import averaged_bounds_at, bounds_at, tuned_schedule_free
from tests.studies.theory.record import COLOURS, Row, Study

T = 400
FAMILIES = {
    "wsd": Family("wsd", {"cooldown_len": 0.2}),
    "linear": Family("linear"),
    "cosine": Family("cosine"),
    "1-sqrt": Family("one-minus-sqrt"),
    "1/sqrt": Family("sqrt"),
    "constant": Family("constant"),
}
PUBLISHED = {
    "wsd": (".025374", ".109323"),
    "linear": (".049563", ".100630"),
    "cosine": (".048242", ".103386"),
    "1-sqrt": (".073797", ".101243"),
    "1/sqrt": (".212086", ".122264"),
    "constant": (".018176", ".137545"),
}
SWEEP = np.geomspace(2**-8, 2, 60)


@cache
def tuned(name: str, kind: str = "refined") -> Plan:
    """The best rate for a schedule, for the last iterate or the average."""
    return best_base(FAMILIES[name], horizon=T, assuming=Assumptions(kind=kind))


def rows() -> list[Row]:
    """Best rates and bounds of all, and those of averages."""
    of_last = [
        row
        for name, (gamma, omega) in PUBLISHED.items()
        for row in (
            Row(f"{name}: gamma*", tuned(name).base_lr, gamma),
            Row(f"{name}: Omega*", tuned(name).bound, omega),
        )
    ]
    of_average = [
        Row(f"{name}: Omega* of the average", tuned(name, "standard").bound, decimals=6)
        for name in PUBLISHED
    ]
    gamma, omega = tuned_schedule_free(T, G=1.0, D=1.0)
    free = [
        Row("schedule-free: gamma*", gamma, ".05"),
        Row("schedule-free: Omega*", omega, ".05"),
    ]
    return [*of_last, *of_average, *free]


def draw(axes: Sequence[Any]) -> None:
    """The bound over the rate; the bound along the tuned runs."""
    sweep, along = axes
    steps = np.arange(1, T + 1)
    for name, family in FAMILIES.items():
        bounds = [plan_at(family, horizon=T, base_lr=lr).bound for lr in SWEEP]
        sweep.plot(SWEEP, bounds, color=COLOURS[name], lw=1.4)
        sweep.plot(tuned(name).base_lr, tuned(name).bound, "o", color=COLOURS[name], ms=4)
        limits = bounds_at(tuned(name).rates, 1.0, D=1.0)
        along.plot(steps, limits, color=COLOURS[name], lw=1.4, label=name)
    gamma, omega = tuned_schedule_free(T, G=1.0, D=1.0)
    look = {"color": COLOURS["schedule-free"], "lw": 1.8}
    free = [_free(lr)[-1] for lr in SWEEP]
    sweep.plot(SWEEP, free, **look)
    sweep.plot(gamma, omega, "o", color=look["color"], ms=4)
    along.plot(steps, _free(gamma), label="schedule-free", **look)
    sweep.set(xlabel=r"base rate $\gamma$", ylabel=r"bound $\Omega_T$", xscale="log", yscale="log")
    sweep.set_ylim(0.04, 2)
    along.set(xlabel="step $t$", ylabel=r"bound $\Omega_t$", ylim=(0, 0.6))
    along.legend(ncols=2, fontsize=7)


def _free(gamma: float) -> np.ndarray:
    return averaged_bounds_at(np.full(T, gamma), 1.0, D=1.0, weights=np.ones(T))


STUDY = Study(
    "comparison",
    "400 steps, G = D = 1. Left: the bound over the base rate, best marked. Right: along the runs "
    "at those rates. Schedule-free's bound is that of its average x, and no horizon went into it "
    "but through the rate.",
    rows,
    draw,
)
