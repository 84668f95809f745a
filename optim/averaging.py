"""Step size and averaging coefficient of one schedule-free step, as plain floats.

Every schedule-free optimizer, fast or reference, takes its step size γ and its averaging
coefficient c from here. No tensors, no torch.

Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, section 4.
"""

import math
from dataclasses import dataclass, field

#: A learning rate that moves nothing; the square of a smaller one may be 0 without harm.
_NEGLIGIBLE = 1e-30


@dataclass(frozen=True, slots=True)
class Counters:
    """What a parameter group carries from one step to the next."""

    #: Completed steps.
    k: int = 0
    #: Sum of the averaging weights of all completed steps.
    weight_sum: float = 0.0
    #: Largest γ of all completed steps; negative before the first, below every real γ.
    lr_max: float = -1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The numbers of one step."""

    #: Number of this step, from 1.
    t: int
    #: γ, the learning rate after warmup.
    lr: float
    #: c, the share of the new z in the new x, in [0, 1].
    c: float
    #: Earlier steps of the group in which the parameters had no gradient.
    missed: int = field(default=0, repr=False)

    @property
    def age(self) -> int:
        """How many gradients the parameters have had, this step's included: what Adam calls t."""
        return self.t - self.missed


def advance(
    counters: Counters,
    *,
    lr: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
    lr_factor: float = 1.0,
) -> tuple[Counters, Pace]:
    """Take one step of the averaging arithmetic; return the new counters and the step's numbers.

    With t = k + 1 and W the sum of weights so far::

        γ = lr · min(1, t / warmup_steps) · lr_factor
        w = t^r · (max of all γ so far, this one included)^weight_lr_power
        c = w / (W + w)

    The maximum keeps the weights from shrinking when ``lr`` is lowered. The first step with a
    nonzero weight has c = 1: x jumps to z. While all weights are 0 (``lr`` = 0), c = 0: x stays.

    Args:
        counters: the group's counters before the step.
        lr: learning rate, >= 0.
        warmup_steps: steps of linear warmup, >= 0; 0 and 1 both mean none.
        r: power of t in the weight, >= 0; larger forgets the past faster.
        weight_lr_power: power of the learning rate in the weight, >= 0; 0 ignores it.
        lr_factor: factor of the learning rate from the base rule in this step, >= 0.

    Raises:
        ValueError: powers so large that the weights leave the range of floats: x would stay where
            it is for ever, whatever z does.

    >>> first, pace = advance(Counters(), lr=0.5, warmup_steps=2, r=0.0, weight_lr_power=2.0)
    >>> pace
    Pace(t=1, lr=0.25, c=1.0)
    >>> advance(first, lr=0.5, warmup_steps=2, r=0.0, weight_lr_power=2.0)[1]
    Pace(t=2, lr=0.5, c=0.8)
    """
    t = counters.k + 1
    gamma = warmed_up(lr, t, warmup_steps=warmup_steps) * lr_factor
    lr_max = max(gamma, counters.lr_max)
    weight = _weight(t, lr_max, r=r, weight_lr_power=weight_lr_power)
    weight_sum = counters.weight_sum + weight
    if not math.isfinite(weight_sum) or (gamma > _NEGLIGIBLE and not weight):
        raise ValueError(
            f"r, weight_lr_power: expected powers whose weights are finite and above 0, seen {r}, "
            f"{weight_lr_power} in step {t} with a learning rate of {lr_max}; take smaller ones"
        )
    c = weight / weight_sum if weight_sum else 0.0
    return Counters(k=t, weight_sum=weight_sum, lr_max=lr_max), Pace(t=t, lr=gamma, c=c)


def _weight(t: int, lr_max: float, *, r: float, weight_lr_power: float) -> float:
    try:
        return float(t**r * lr_max**weight_lr_power)
    except OverflowError:
        return math.inf


def warmed_up(lr: float, t: int, *, warmup_steps: int) -> float:
    """Return lr · min(1, t / warmup_steps), for step t from 1; 0 steps mean no warmup.

    >>> [warmed_up(0.3, t, warmup_steps=2) for t in (1, 2, 3)]
    [0.15, 0.3, 0.3]
    """
    return lr * t / warmup_steps if t < warmup_steps else lr
