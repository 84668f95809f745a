"""What is the bound made of, and why does a cooldown help? (term split)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.planning import Family, Plan, best_base
from roadless.optim.theory.bounds import Floats, bounds_at
from tests.studies.theory.record import COLOURS, SEQUENCE, Row, Study

T = 4000
HORIZONS = (500, 1000, 2000, 4000, 8000)
WSD = Family("wsd", {"cooldown_len": 0.2})


@cache
def tuned(horizon: int) -> Plan:
    """Warmup-stable-decay at its best rate."""
    return best_base(WSD, horizon=horizon)


def closed_form(horizons: Sequence[int] | Floats) -> Floats:
    """The best bound of a constant rate: D G / sqrt(T) sqrt(1 + H_{T-1})."""
    harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, max(horizons)))))
    steps = np.asarray(horizons, dtype=np.int64)
    return np.asarray(np.sqrt((1 + harmonic[steps - 1]) / steps))


def rows() -> list[Row]:
    """Whether the logarithm goes: Omega* sqrt(T) grows for a constant rate only."""
    constant = closed_form([500, 8000]) * np.sqrt([500, 8000])
    return [
        Row("constant: Omega* sqrt(T), T = 500", constant[0], decimals=3),
        Row("constant: Omega* sqrt(T), T = 8000", constant[1], decimals=3),
        Row("wsd 0.2: Omega* sqrt(T), T = 500", tuned(500).bound * 500**0.5, decimals=3),
        Row("wsd 0.2: Omega* sqrt(T), T = 8000", tuned(8000).bound * 8000**0.5, decimals=3),
    ]


def draw(axes: Sequence[Any]) -> None:
    """The terms along one run; the bounds of many, beside the logarithm."""
    split, logs = axes
    plan, steps = tuned(T), np.arange(1, T + 1, 10)
    t1, t2, t3 = plan.schedule.compute_rate(1.0, 1.0, steps, return_split=True)
    looks = (
        ("distance: $D^2 / 2S$", t1, COLOURS["wsd"], "-"),
        ("noise of the average", t2, COLOURS["cosine"], "--"),
        ("price of the last iterate", t3, COLOURS["cosine"], "-"),
        ("bound", t1 + t2 + t3, "black", "-"),
    )
    for label, term, colour, style in looks:
        split.plot(steps, term, color=colour, ls=style, label=label, lw=1.4)
    split.axvline(plan.schedule.cooldown_start, color="#bbbbbb", ls=":", zorder=0)
    split.set(xlabel="step $t$", ylabel="terms of the bound", yscale="log", ylim=(3e-3, 1))
    for horizon, colour in zip(HORIZONS, SEQUENCE[1:], strict=False):
        run = tuned(horizon)
        label = "wsd, five horizons" if horizon == HORIZONS[-2] else None
        logs.plot(bounds_at(run.rates, 1.0, D=1.0), color=colour, lw=1.2, label=label)
    many = np.unique(np.geomspace(20, 8000, 200).astype(int))
    logs.plot(
        many, closed_form(many), color=COLOURS["constant"], label="constant, tuned for each $t$"
    )
    ends = tuned(8000).bound * 8000**0.5 / np.sqrt(many)
    logs.plot(many, ends, color="black", ls=":", label=r"$\sim 1 / \sqrt{t}$")
    logs.set(xlabel="step $t$", ylabel=r"bound $\Omega_t$", xscale="log", yscale="log")
    logs.set(xlim=(20, 9000), ylim=(0.02, 0.6))
    split.legend(fontsize=7)
    logs.legend(fontsize=7)


STUDY = Study(
    "terms",
    "Left: the bound along 4000 steps, cooldown from the dotted line, where the price of the last "
    "iterate drops. Right: with a cooldown the ends follow 1/sqrt(T); the constant rate keeps a "
    "logarithm.",
    rows,
    draw,
)
