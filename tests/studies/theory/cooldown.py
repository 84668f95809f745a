"""How long should the cooldown be? (cooldown length)"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from roadless.optim.planning import CooldownCurve, Family, best_base, cooldown_curve
from roadless.optim.schedules.parts import DecayType
from tests.studies.theory.record import COLOURS, SEQUENCE, Row, Study

T = 400
PUBLISHED = {
    0.01: "2.825",
    0.1: "2.323",
    0.2: "2.187",
    0.4: "2.075",
    0.6: "2.031",
    0.8: "2.015",
    0.9: "2.013",
    1.0: "2.0126",
}
#: Kept rates, as multiples of the best for linear decay.
KEPT = (0.25, 0.5, 1.0, 2.0)


@cache
def curve(decay_type: DecayType, kept: float | None = None) -> CooldownCurve:
    """Bounds over the length, tuned for each or at a kept rate."""
    base_lr = kept and kept * best_base(Family("linear"), horizon=T).base_lr
    return cooldown_curve(horizon=T, decay_type=decay_type, base_lr=base_lr)


def rows() -> list[Row]:
    """Omega* sqrt(T), and the shortest cooldown within 1 percent."""
    linear = curve("linear")
    scaled = dict(zip(linear.fractions, linear.bounds * T**0.5, strict=True))
    near = {decay: curve(decay).best(slack=0.01) for decay in ("linear", "sqrt")}
    return [
        *(Row(f"Omega* sqrt(T), cooldown {c}", scaled[c], text) for c, text in PUBLISHED.items()),
        *(
            Row(
                f"shortest {name} cooldown within 1 % of the best",
                plan.family.arguments["cooldown_len"],
                decimals=2,
            )
            for name, plan in near.items()
        ),
    ]


def draw(axes: Sequence[Any]) -> None:
    """The tuned bound over the length; the bound at kept rates."""
    tuned, kept = axes
    for decay, colour in (("linear", COLOURS["linear"]), ("sqrt", COLOURS["1-sqrt"])):
        name = "1 - sqrt" if decay == "sqrt" else decay
        tuned.plot(curve(decay).fractions, curve(decay).bounds * T**0.5, color=colour, label=name)
    published = [float(text) for text in PUBLISHED.values()]
    tuned.plot(list(PUBLISHED), published, "o", color="black", ms=4, label="published, linear")
    tuned.set(xlabel="cooldown, share of the run", ylabel=r"$\Omega^* \sqrt{T}$")
    for factor, colour in zip(KEPT, SEQUENCE[::2], strict=True):
        one = curve("linear", factor)
        kept.plot(one.fractions, one.bounds, color=colour, label=rf"{factor:g} $\gamma^*$")
        best = int(np.argmin(one.bounds))
        kept.plot(one.fractions[best], one.bounds[best], "o", color=colour, ms=5)
    kept.set(xlabel="cooldown, share of the run", ylabel=r"bound $\Omega_T$", ylim=(0.095, 0.28))
    tuned.legend()
    kept.legend(title="kept rate", ncols=2)


STUDY = Study(
    "cooldown",
    "Cooldowns of all lengths, 400 steps. Left: tuned for each, a longer one is better and the "
    "curve is flat after 0.6. Right: at a kept rate (multiples of linear decay's best), the best "
    "length is marked; low rates have no time to cool down. The published .109323 times 20 is "
    "2.18646 too.",
    rows,
    draw,
)
