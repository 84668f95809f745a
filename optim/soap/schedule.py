"""When to refresh the basis: often early on, less and less often later.

The basis turns fast at the start of training and hardly at all at the end, and refreshing it is the
most expensive part of a step. All of this is plain arithmetic on step numbers, no tensors.
"""

import math
import random
from dataclasses import dataclass
from typing import Protocol

from roadless.optim.rules.base import Group

#: Tolerance of the sum of 1/f(s): lagging the step count by less than this skips no update. 1/f(2)
#: is already 1 - 1e-9, which a bare floor takes for a missed update, as HeavyBall 3 does.
_GRACE = 0.25


def steps_between_updates(s: int, *, power: float = 1 / 3, exponent: float = 9) -> float:
    """Return f(s), the mean number of steps from one update of the basis to the next.

    ::

        f(s) = log₁₀(max(s, 1)^power)^exponent + 1

    Args:
        s: step, counted from 1.
        power: >= 0.
        exponent: > 0.

    Source: HeavyBall 0.7.4, after the update probability of PSGD, Li, arXiv 1512.04202.

    >>> [round(steps_between_updates(10**i), 4) for i in range(7)]
    [1.0, 1.0001, 1.026, 2.0, 14.3183, 100.229, 513.0]
    """
    return float(math.log10(max(s, 1) ** power) ** exponent + 1)


def total_updates(num_steps: int, *, power: float = 1 / 3, exponent: float = 9) -> int:
    """Return how often the basis is updated in the first ``num_steps`` steps, evenly timed.

    >>> [total_updates(n) for n in (10, 100, 1000, 10_000)]
    [10, 99, 738, 2168]
    """
    due = 0.0
    for s in range(1, num_steps + 1):
        due += 1 / steps_between_updates(s, power=power, exponent=exponent)
    return math.floor(due + _GRACE)


class Timing(Protocol):
    """Decides whether to update the basis in a step; ``due`` is its memory."""

    def is_due(self, s: int, due: float, /) -> tuple[bool, float]:
        """Return whether step s (from 1) updates, and the memory after it; it starts at 0."""


@dataclass(frozen=True, slots=True)
class Constant:
    """An update every ``every`` steps; no memory.

    >>> [Constant(2).is_due(s, 0.0)[0] for s in (1, 2, 3, 4)]
    [False, True, False, True]
    """

    every: int

    def is_due(self, s: int, due: float, /) -> tuple[bool, float]:
        """Return whether s is a multiple of ``every``."""
        return s % self.every == 0, due


@dataclass(frozen=True, slots=True)
class Even:
    """The schedule f without randomness: an update whenever Σ 1/f(s) reaches the next whole number.

    >>> timing, due, updates = Even(1 / 3, 9), 0.0, 0
    >>> for s in range(1, 1001):
    ...     is_due, due = timing.is_due(s, due)
    ...     updates += is_due
    >>> updates
    738
    """

    power: float
    exponent: float

    def is_due(self, s: int, due: float, /) -> tuple[bool, float]:
        """Return whether the sum passes a whole number in step s, and the sum after it."""
        after = due + 1 / steps_between_updates(s, power=self.power, exponent=self.exponent)
        return math.floor(after + _GRACE) > math.floor(due + _GRACE), after


@dataclass(frozen=True, slots=True)
class Chance:
    """The schedule f at random: an update with probability 1/f(s), drawn from (seed, s) alone.

    There is no generator whose state could be lost: the same step draws the same number on every
    rank and after every resume. HeavyBall 0.7.4 draws from a generator that it does not save.

    >>> sum(Chance(1 / 3, 9, seed=0).is_due(s, 0.0)[0] for s in range(1, 101))
    100
    """

    power: float
    exponent: float
    seed: int

    def is_due(self, s: int, due: float, /) -> tuple[bool, float]:
        """Return whether the number drawn for step s is below 1/f(s)."""
        lot = random.Random(f"{self.seed} {s}").random()
        return lot * steps_between_updates(s, power=self.power, exponent=self.exponent) < 1, due


def timing_of(group: Group) -> Timing:
    """Return the timing that a parameter group specifies."""
    if not group["precond_schedule"]:
        return Constant(group["precondition_frequency"])
    power, exponent = group["precond_scheduler"]
    if group["precond_timing"] == "chance":
        return Chance(power, exponent, group["precond_seed"])
    return Even(power, exponent)
