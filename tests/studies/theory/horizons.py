"""Tuned for each horizon, how do bound and rate depend on it? (multiple horizons)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.planning import Family, Plan, best_base
from roadless.optim.theory.bounds import bounds_at
from tests.studies.theory.record import COLOURS, Row, Study, plain_ticks

HORIZONS = (200, 400, 800, 1600, 3200)
FAMILIES = {
    "cosine": Family("cosine"),
    "wsd": Family("wsd", {"cooldown_len": 0.2}),
    "linear": Family("linear"),
}


@cache
def tuned(name: str, horizon: int) -> Plan:
    """The best rate of a schedule at a horizon."""
    return best_base(FAMILIES[name], horizon=horizon)


def power_law(name: str) -> tuple[float, float]:
    """A, B of gamma* ~ A T^B, by least squares of the logarithms."""
    rates = [tuned(name, T).base_lr for T in HORIZONS]
    B, log_A = np.polyfit(np.log(HORIZONS), np.log(rates), 1)
    return float(np.exp(log_A)), float(B)


def rows() -> list[Row]:
    """The power laws, and how far apart the schedules' rates are."""
    cosine, wsd = power_law("cosine"), power_law("wsd")
    ratio = {name: tuned(name, 1600).base_lr / tuned("wsd", 1600).base_lr for name in FAMILIES}
    return [
        Row("cosine: A of gamma* ~ A T^B", cosine[0], ".932"),
        Row("cosine: B", cosine[1], "-.494"),
        Row("wsd 0.2: A", wsd[0], ".479"),
        Row("wsd 0.2: B", wsd[1], "-.491"),
        Row("gamma* of cosine / wsd 0.2, T = 1600", ratio["cosine"], "1.89"),
        Row("gamma* of linear / wsd 0.2, T = 1600", ratio["linear"], "1.947"),
    ]


def draw(axes: Sequence[Any]) -> None:
    """Bounds along the runs; best rates over the horizon."""
    along, over = axes
    for name in ("cosine", "wsd"):
        for T in HORIZONS:
            plan = tuned(name, T)
            label = name if HORIZONS[-1] == T else None
            along.plot(bounds_at(plan.rates, 1.0, D=1.0), color=COLOURS[name], label=label, lw=1.2)
        A, B = power_law(name)
        over.plot(HORIZONS, [tuned(name, T).base_lr for T in HORIZONS], "o", color=COLOURS[name])
        law = [A * T**B for T in HORIZONS]
        over.plot(HORIZONS, law, color=COLOURS[name], label=f"{name}: {A:.2f} $T^{{{B:.3f}}}$")
    along.set(xlabel="step $t$", ylabel=r"bound $\Omega_t$", xscale="log", yscale="log")
    along.set(xlim=(10, 4000), ylim=(0.03, 0.6))
    over.set(xlabel="horizon $T$", ylabel=r"best rate $\gamma^*$", xscale="log", yscale="log")
    plain_ticks(along, x=(10, 100, 1000), y=(0.05, 0.1, 0.2, 0.5))
    plain_ticks(over, x=HORIZONS, y=(0.01, 0.02, 0.05))
    along.legend()
    over.legend()


STUDY = Study(
    "horizons",
    "Tuned for each of five horizons: the bound along the run, and the best rate, which falls "
    "almost as 1/sqrt(T). The horizons of the published fits are not known; they matter.",
    rows,
    draw,
)
