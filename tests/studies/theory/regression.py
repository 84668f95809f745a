"""Does a run on a convex problem look like its bound? (2-d l-infinity regression)"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.averaging import Counters, advance
from roadless.optim.planning import Family
from roadless.optim.theory.bounds import Floats
from tests.studies.theory.record import COLOURS, Row, Study

NUM_POINTS = 20
DISTANCE = 5.0
T = 400
SEED = 0
#: A rate that reaches the optimum; a cosine gets twice as much, schedule-free D / (G sqrt(T)).
RATE = 0.02
RATES = {"wsd": RATE, "constant": RATE, "cosine": 2 * RATE}
FAMILIES = {
    "wsd": Family("wsd", {"cooldown_len": 0.2}),
    "constant": Family("constant"),
    "cosine": Family("cosine"),
}
BETA = 0.9


@dataclass(frozen=True, slots=True)
class Regression:
    """F(x) = max_i |<a_i, x - x*>| with points in a square."""

    a: Floats
    optimum: Floats

    def loss(self, x: Floats) -> float:
        """F(x); its least is 0."""
        return float(np.abs(self.a @ (x - self.optimum)).max())

    def gradient(self, x: Floats) -> Floats:
        """A subgradient: the worst point's."""
        slopes = self.a @ (x - self.optimum)
        worst = int(np.abs(slopes).argmax())
        return np.asarray(np.sign(slopes[worst]) * self.a[worst])


@dataclass(frozen=True, slots=True)
class Run:
    """Losses and points after each step."""

    losses: Floats
    points: Floats


@cache
def problem() -> Regression:
    """The seeded problem."""
    random = np.random.default_rng(SEED)
    a = random.uniform(-1, 1, size=(NUM_POINTS, 2))
    direction = random.normal(size=2)
    return Regression(a=a, optimum=DISTANCE * direction / np.linalg.norm(direction))


@cache
def descent(name: str) -> Run:
    """Subgradient descent under a schedule."""
    x, points = np.zeros(2), []
    for eta in FAMILIES[name].at(T, base_lr=RATES[name]).schedule[:T]:
        x = x - eta * problem().gradient(x)
        points.append(x)
    return Run(np.array([problem().loss(x) for x in points]), np.array(points))


@cache
def schedule_free() -> Run:
    """Schedule-free descent at the rate of its theorem."""
    G = float(np.linalg.norm(problem().a, axis=1).max())
    x = z = np.zeros(2)
    counters, points = Counters(), []
    for _ in range(T):
        counters, pace = advance(
            counters, lr=DISTANCE / (G * T**0.5), warmup_steps=0, r=0.0, weight_lr_power=2.0
        )
        z = z - pace.lr * problem().gradient((1 - BETA) * z + BETA * x)
        x = x + pace.c * (z - x)
        points.append(x)
    return Run(np.array([problem().loss(x) for x in points]), np.array(points))


def runs() -> dict[str, Run]:
    """All of them by name."""
    return {**{name: descent(name) for name in FAMILIES}, "schedule-free": schedule_free()}


def rows() -> list[Row]:
    """Final losses, and what the cooldown did."""
    start = FAMILIES["wsd"].at(T).cooldown_start
    before = float(descent("wsd").losses[start - 20 : start].mean())
    final = [Row(f"{name}: final loss", run.losses[-1], decimals=6) for name, run in runs().items()]
    return [*final, Row("wsd: loss over the last 20 steps before the cooldown", before, decimals=6)]


def draw(axes: Sequence[Any]) -> None:
    """The losses; the last fifth of the paths, near the optimum."""
    losses, paths = axes
    for name, run in runs().items():
        losses.plot(np.arange(1, T + 1), run.losses, color=COLOURS[name], label=name, lw=1.2)
        last = run.points[-T // 5 :] - problem().optimum
        paths.plot(*last.T, "-", color=COLOURS[name], lw=0.7, alpha=0.8)
        paths.plot(*last[-1], "o", color=COLOURS[name], ms=6, zorder=3)
    losses.set(xlabel="step $t$", ylabel="$F(x_t)$", yscale="log", ylim=(1e-4, 10))
    paths.plot(0, 0, "*", color="black", ms=11, label="optimum", zorder=4)
    paths.set(xlabel="distance from the optimum", title="last fifth of the paths")
    paths.locator_params(nbins=5)
    losses.legend()
    paths.legend()


STUDY = Study(
    "regression",
    "Worst-case regression with 20 points in the plane, one run each. A constant rate keeps its "
    "distance from the optimum, the cooldown goes there, as the bound says; schedule-free's "
    "average comes nearer than the constant rate, without one.",
    rows,
    draw,
)
