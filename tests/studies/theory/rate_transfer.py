"""By how much must a rate be multiplied that was tuned with another cooldown? (rate transfer)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.planning import Family, transfer_base
from roadless.optim.schedules.parts import DecayType
from tests.studies.theory.record import SEQUENCE, Row, Study

HORIZONS = (400, 1600, 6400, 25600)
FRACTIONS = tuple(float(c) for c in np.linspace(0.05, 1, 20))


def wsd(fraction: float, decay_type: DecayType) -> Family:
    """Warmup-stable-decay with a cooldown."""
    return Family("wsd", {"cooldown_len": fraction, "decay_type": decay_type})


@cache
def ratio(fraction: float, decay_type: DecayType, horizon: int) -> float:
    """gamma* of a cooldown of all the run over gamma* of a shorter one."""
    return transfer_base(
        1.0,
        source=wsd(fraction, decay_type),
        source_horizon=horizon,
        target=wsd(1.0, decay_type),
        target_horizon=horizon,
    )


def rows() -> list[Row]:
    """The ratios that were published."""
    return [
        Row("linear: gamma*(1) / gamma*(0.2), T = 1600", ratio(0.2, "linear", 1600), "1.947"),
        Row("1-sqrt: gamma*(1) / gamma*(0.2), T = 400", ratio(0.2, "sqrt", 400), "2.75"),
        Row("linear: gamma*(1) / gamma*(0.6), T = 1600", ratio(0.6, "linear", 1600), decimals=3),
    ]


def draw(axes: Sequence[Any]) -> None:
    """The ratio over the cooldown, for both decays and four horizons."""
    for axis, decay in zip(axes, ("linear", "sqrt"), strict=True):
        for horizon, colour in zip(HORIZONS, SEQUENCE[::2], strict=True):
            ratios = [ratio(c, decay, horizon) for c in FRACTIONS]
            axis.plot(FRACTIONS, ratios, color=colour, label=f"{horizon:,}")
        name = "1 - sqrt" if decay == "sqrt" else decay
        axis.set(xlabel="cooldown $c$, share of the run", title=f"{name} cooldown")
        axis.set_ylabel(r"$\gamma^*(1) \, / \, \gamma^*(c)$")
        axis.legend(title="steps")


STUDY = Study(
    "rate-transfer",
    "A rate tuned with a short cooldown, times this ratio, is right for decay over the whole run. "
    "It hardly depends on the horizon.",
    rows,
    draw,
)
