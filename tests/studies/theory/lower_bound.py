"""How much worse than the worst case is the bound? (semidefinite lower bounds)

Needs PEPit, which writes the search for the worst function as a semidefinite program.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from PEPit import PEP, Point
from PEPit.functions import ConvexFunction

from roadless.optim.averaging import Counters, advance
from roadless.optim.planning import Family, best_base
from roadless.optim.theory.bounds import bounds_at, schedule_free_bounds_at, tuned_schedule_free
from tests.studies.theory.record import COLOURS, Row, Study, plain_ticks

T = 24
HORIZONS = (2, 4, 8, 16, 24)
FAMILIES = {
    "constant": Family("constant"),
    "wsd": Family("wsd", {"cooldown_len": 0.2}),
    "cosine": Family("cosine"),
    "linear": Family("linear"),
}
BETA = 0.9
SOLVER = "CLARABEL"


class Worst:
    """The worst convex F with G = D = 1, and the gradients that a method takes of it."""

    def __init__(self) -> None:
        self._problem = PEP()
        self._F = self._problem.declare_function(ConvexFunction)
        optimum = self._F.stationary_point()
        self._least = self._F(optimum)
        self.start = self._problem.set_initial_point()
        self._problem.set_initial_condition((self.start - optimum) ** 2 <= 1)

    def gradient(self, x: Point) -> Point:
        """A subgradient with norm <= 1."""
        return self._measured(x)[0]

    def gap(self, x: Point) -> float:
        """The largest F(x) - F(x*)."""
        self._problem.set_performance_metric(self._measured(x)[1] - self._least)
        return float(self._problem.solve(wrapper="cvxpy", solver=SOLVER, verbose=0))

    def _measured(self, x: Point) -> tuple[Any, Any]:
        g, F = self._F.oracle(x)
        self._F.add_constraint(g**2 <= 1)
        return g, F


@cache
def rates(name: str) -> tuple[float, ...]:
    """The best rates of a schedule."""
    return tuple(best_base(FAMILIES[name], horizon=T).rates)


@cache
def worst_last(name: str, horizon: int) -> float:
    """The worst last iterate x_T, which T - 1 steps make."""
    worst = Worst()
    x = worst.start
    for eta in rates(name)[: horizon - 1]:
        x = x - eta * worst.gradient(x)
    return worst.gap(x)


@cache
def worst_average(horizon: int, r: float = 0.0, warmup_steps: int = 0) -> float:
    """The worst x of schedule-free SGD after so many steps, as the optimizers compute it."""
    worst = Worst()
    x = z = worst.start
    counters = Counters()
    for _ in range(horizon):
        counters, pace = advance(
            counters, lr=free_rate(), warmup_steps=warmup_steps, r=r, weight_lr_power=2.0
        )
        z = z - pace.lr * worst.gradient((1 - BETA) * z + BETA * x)
        x = (1 - pace.c) * x + pace.c * z
    return worst.gap(x)


def free_rate() -> float:
    """D / (G sqrt(T))."""
    return tuned_schedule_free(T, G=1.0, D=1.0)[0]


def free_bound(horizon: int, r: float = 0.0, warmup_steps: int = 0) -> float:
    """The bound that belongs to `worst_average`."""
    ramp = [min(1.0, t / max(warmup_steps, 1)) for t in range(1, T + 1)]
    eta = [free_rate() * share for share in ramp]
    return float(schedule_free_bounds_at(eta, 1.0, D=1.0, r=r)[horizon - 1])


def rows() -> list[Row]:
    """Bound over worst case after all steps."""
    last = [
        Row(
            f"{name}: bound / worst case, T = {T}",
            float(bounds_at(rates(name), 1.0, D=1.0)[-1]) / worst_last(name, T),
            decimals=3,
        )
        for name in FAMILIES
    ]
    average = [
        Row(
            f"schedule-free, r = {r:g}, warmup {warmup}: bound / worst case, T = {T}",
            free_bound(T, r, warmup) / worst_average(T, r, warmup),
            decimals=3,
        )
        for r, warmup in ((0.0, 0), (0.0, 6), (1.0, 0))
    ]
    return [*last, *average]


def draw(axes: Sequence[Any]) -> None:
    """Bounds (lines) and worst cases (dots) along the runs; the same for schedule-free."""
    last, average = axes
    steps = range(1, T + 1)
    for name in FAMILIES:
        last.plot(steps, bounds_at(rates(name), 1.0, D=1.0), color=COLOURS[name], label=name)
        worst = [worst_last(name, horizon) for horizon in HORIZONS]
        last.plot(HORIZONS, worst, "o:", color=COLOURS[name], ms=4)
    looks = {(0.0, 0): "-", (0.0, 6): "--", (1.0, 0): "-."}
    for (r, warmup), style in looks.items():
        limits = [free_bound(horizon, r, warmup) for horizon in steps]
        label = f"r = {r:g}, warmup {warmup}"
        average.plot(steps, limits, ls=style, color=COLOURS["schedule-free"], label=label)
        worst = [worst_average(horizon, r, warmup) for horizon in HORIZONS]
        average.plot(HORIZONS, worst, "o", ls=style, color="black", ms=4, lw=0.8)
    for axis, title in ((last, "last iterate"), (average, "schedule-free")):
        axis.set(xlabel="step $t$", title=title, yscale="log")
        plain_ticks(axis, y=(0.2, 0.5, 1, 2, 5, 10))
    last.set_ylim(0.17, 6)
    last.set_ylabel(r"$F(x_t) - F(x^*)$: bound, worst case")
    last.legend()
    average.legend()


STUDY = Study(
    "lower-bound",
    "Bounds (lines without dots) and the worst case of all convex functions with G = D = 1 "
    "(dots), which semidefinite programs find. Our bound for r > 0 is safe and not tight.",
    rows,
    draw,
)
