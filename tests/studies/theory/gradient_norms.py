"""What if gradients shrink or grow along the run? (gradient-norm shapes)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.planning import Assumptions, Family, Plan, best_base, plan_at
from roadless.optim.theory.bounds import bounds_at
from tests.studies.theory.record import COLOURS, Row, Study

T = 400
#: G_t = t^alpha.
POWERS = (0.0, -0.5, -1.0)
FAMILIES = {"wsd": Family("wsd", {"cooldown_len": 0.2}), "cosine": Family("cosine")}
STYLES = dict(zip(POWERS, ("-", "--", ":"), strict=True))
SWEEP = np.geomspace(2**-8, 2, 40)


def assuming(alpha: float) -> Assumptions:
    """Norms that follow the power."""
    return Assumptions(grad_norms=np.arange(1, T + 1) ** alpha)


@cache
def tuned(name: str, alpha: float) -> Plan:
    """The best rate for a schedule under a power."""
    return best_base(FAMILIES[name], horizon=T, assuming=assuming(alpha))


def rows() -> list[Row]:
    """Best rates and bounds."""
    pairs = [(name, alpha) for name in FAMILIES for alpha in POWERS]
    return [
        row
        for name, alpha in pairs
        for row in (
            Row(f"{name}, G_t = t^{alpha:g}: gamma*", tuned(name, alpha).base_lr),
            Row(f"{name}, G_t = t^{alpha:g}: Omega*", tuned(name, alpha).bound, decimals=5),
        )
    ]


def draw(axes: Sequence[Any]) -> None:
    """The bound over the rate; the bound along the tuned runs."""
    sweep, along = axes
    for name, family in FAMILIES.items():
        for alpha in POWERS:
            look = {"color": COLOURS[name], "ls": STYLES[alpha], "lw": 1.4}
            label = rf"{name}, $\alpha$ = {alpha:g}"
            bounds = [
                plan_at(family, horizon=T, base_lr=lr, assuming=assuming(alpha)).bound
                for lr in SWEEP
            ]
            sweep.plot(SWEEP, bounds, **look)
            best = tuned(name, alpha)
            sweep.plot(best.base_lr, best.bound, "o", color=COLOURS[name], ms=4)
            norms = assuming(alpha).norms_until(T)
            along.plot(
                np.arange(1, T + 1), bounds_at(best.rates, norms, D=1.0), label=label, **look
            )
    sweep.set(xlabel=r"base rate $\gamma$", ylabel=r"bound $\Omega_T$", xscale="log", yscale="log")
    sweep.set_ylim(top=3)
    along.set(xlabel="step $t$", ylabel=r"bound $\Omega_t$", yscale="log", ylim=(0.003, 4))
    along.legend(fontsize=7, ncols=2)


STUDY = Study(
    "gradient-norms",
    "Gradient norms that follow t^alpha. Falling norms want higher rates and give smaller "
    "bounds, and then wsd is better than the cosine, which lowers its rate early.",
    rows,
    draw,
)
