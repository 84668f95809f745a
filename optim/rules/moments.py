"""Policies for running averages: what β is in step t, and what makes the average unbiased.

All are plain arithmetic on the settings of a group and the number t of gradients that a tensor has
had, from 1; no tensors.
"""

from collections.abc import Callable
from typing import NamedTuple

from roadless.optim.rules.base import Group


class Ema(NamedTuple):
    """m ← beta · m + (1 - beta) · new; the value used is m / correction."""

    beta: float
    correction: float


#: The coefficients at the t-th gradient, from 1.
Policy = Callable[[Group, int], Ema]


def debiased(beta: float, t: int) -> float:
    """Return the coefficient with which a running average is unbiased at every step.

    ::

        β̂ₜ = 1 - (1 - β) / (1 - βᵗ)

    With it, m itself equals Adam's m / (1 - βᵗ): the first step discards the initial zeros, and no
    correction is needed. HeavyBall calls it an "in-place EMA".

    >>> [round(debiased(0.9, t), 6) for t in (1, 2, 3, 4)]
    [0.0, 0.473684, 0.630996, 0.709218]
    """
    return 1 - (1 - beta) / (1 - beta**t)


def palm_beta2(t: int, *, scale: float = 0.8) -> float:
    """Return β₂ = 1 - t⁻ˢ, which needs no tuning: long memory comes with long training.

    Args:
        t: step, from 1.
        scale: s, > 0.

    Source: Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, section 5; Shazeer and Stern 2018,
    "Adafactor", arXiv 1804.04235, section 7.2.

    >>> [round(palm_beta2(t), 5) for t in (1, 2, 3, 10, 100, 1000)]
    [0.0, 0.42565, 0.58476, 0.84151, 0.97488, 0.99602]
    """
    return 1 - float(t**-scale)


def corrected_second(group: Group, t: int) -> Ema:
    """Constant β₂ with Adam's correction in the denominator."""
    beta2 = float(group["betas"][1])
    return Ema(beta2, 1 - beta2**t)


def uncorrected_second(group: Group, _t: int) -> Ema:
    """Constant β₂ without correction."""
    return Ema(float(group["betas"][1]), 1.0)


def debiased_first(group: Group, t: int) -> Ema:
    """Constant β₁, as an in-place EMA."""
    return Ema(debiased(float(group["betas"][0]), t), 1.0)


def debiased_second(group: Group, t: int) -> Ema:
    """Constant β₂, as an in-place EMA."""
    return Ema(debiased(float(group["betas"][1]), t), 1.0)


def debiased_palm_second(group: Group, t: int) -> Ema:
    """PaLM's β₂, as an in-place EMA."""
    return Ema(debiased(palm_beta2(t, scale=group["beta2_scale"]), t), 1.0)
