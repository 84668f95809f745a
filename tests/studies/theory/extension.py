"""A finished run goes on: what keeps its rate the right one? (horizon transfer)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.planning import (
    Family,
    Plan,
    best_base,
    extend_by_cooldown,
    extend_by_factor,
    plan_at,
)
from tests.studies.theory.record import COLOURS, SEQUENCE, Row, Study

FINISHED = 4000
#: How much longer -> cooldown fraction and factor, as published.
PUBLISHED = {
    1.5: (".4375", ".625"),
    2.0: (".634", ".525"),
    2.5: (".775", ".475"),
    3.0: (".8875", ".425"),
    3.5: (".972", ".40"),
    4.0: ("1.0", ".375"),
}
WSD = Family("wsd", {"cooldown_len": 0.2})


@cache
def extended(way: str, longer: float) -> Plan:
    """The plan for ``longer`` times the steps."""
    horizon = int(FINISHED * longer)
    match way:
        case "cooldown":
            return extend_by_cooldown(WSD, finished=FINISHED, horizon=horizon)
        case "factor":
            return extend_by_factor(WSD, finished=FINISHED, horizon=horizon)
        case "as before":
            gamma = best_base(WSD, horizon=FINISHED).base_lr
            return plan_at(WSD, horizon=horizon, base_lr=gamma)
    return best_base(Family("linear"), horizon=horizon)


def rows() -> list[Row]:
    """The table of fractions and factors, and the bounds at twice the length."""
    table = [
        row
        for longer, (fraction, factor) in PUBLISHED.items()
        for row in (
            Row(
                f"{longer:g} times: cooldown fraction",
                extended("cooldown", longer).family.arguments["cooldown_len"],
                fraction,
            ),
            Row(
                f"{longer:g} times: second-stage factor",
                extended("factor", longer).family.arguments["factors"][0],
                factor,
            ),
        )
    ]
    at_twice = {
        "as before": ".025628",
        "factor": ".02309",
        "cooldown": ".022518",
        "linear, from the start": ".022372",
    }
    return table + [
        Row(f"2 times: bound, {way}", extended(way, 2.0).bound, text)
        for way, text in at_twice.items()
    ]


def draw(axes: Sequence[Any]) -> None:
    """Rates by longer cooldowns, rates by second stages, bounds over the horizon."""
    by_cooldown, by_factor, bounds = axes
    for axis, way in ((by_cooldown, "cooldown"), (by_factor, "factor")):
        for longer, colour in zip(PUBLISHED, SEQUENCE[1:], strict=True):
            plan = extended(way, longer)
            axis.plot(np.arange(plan.horizon), plan.rates, color=colour, label=f"{longer:g}")
        old = best_base(WSD, horizon=FINISHED)
        axis.plot(np.arange(FINISHED), old.rates, color="black", ls="--", label="finished")
        axis.set(xlabel="step $t$", ylim=(0, None), title=f"longer by a {way}")
    by_cooldown.set_ylabel(r"rate $\eta_t$")
    by_factor.legend(title="times as long", ncols=2, fontsize=7)
    looks = {
        "as before": (COLOURS["constant"], "s"),
        "factor": (COLOURS["cosine"], "v"),
        "cooldown": (COLOURS["wsd"], "o"),
        "linear, from the start": (COLOURS["linear"], "."),
    }
    for way, (colour, marker) in looks.items():
        totals = [extended(way, longer).bound for longer in PUBLISHED]
        bounds.plot(list(PUBLISHED), totals, color=colour, marker=marker, ms=4, label=way)
    bounds.set(xlabel="times as long", ylabel=r"bound $\Omega_T$")
    bounds.legend(fontsize=7)


STUDY = Study(
    "extension",
    "A run of 4000 steps (dashed) goes on at its rate. A longer cooldown is nearly as good as "
    "linear decay from the start; a second stage needs no state from before the old cooldown.",
    rows,
    draw,
    num_panels=3,
)
