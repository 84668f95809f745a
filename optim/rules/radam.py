"""Rectified Adam: no steps, or plain ones, until the second moment can be trusted."""

import math
from dataclasses import dataclass

from roadless.optim.backends.form import Direction
from roadless.optim.checks import require_bool
from roadless.optim.rules.adam import Adam
from roadless.optim.rules.base import Batch, Group, Rule, TensorList
from roadless.optim.rules.moments import corrected_second

_ADAM = Adam(second=corrected_second)
#: Length that the moving average must exceed for its variance to be tractable.
_TRACTABLE = 4


@dataclass(frozen=True, slots=True)
class RAdam(Rule):
    """Adam's direction, with the learning rate multiplied by the rectification of step t.

    While that is undefined, in the first few steps, either nothing moves
    (``group["silent_sgd_phase"]``) or the direction is the gradient. v is updated in both cases.
    For β₂ <= 0.6 it is never defined, and the direction is always the gradient, as in torch 2.13;
    schedulefree 1.4.1 never moves then.

    Source: Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond",
    arXiv 1908.03265, algorithm 2.
    """

    def buffer_names(self, group: Group, /) -> tuple[str, ...]:
        """Return the buffers of Adam."""
        return _ADAM.buffer_names(group)

    def check(self, group: Group) -> None:
        """Check what Adam checks, and ``silent_sgd_phase``."""
        _ADAM.check(group)
        require_bool(group, "silent_sgd_phase")

    def lr_factor(self, group: Group, t: int, /) -> float:
        """Return `rectified`."""
        return rectified(group, t)

    def kernel(self, group: Group, t: int, /) -> Direction | None:
        """Return Adam's, once the rectification is defined."""
        is_defined = rectification(float(group["betas"][1]), t) is not None
        return _ADAM.kernel(group, t) if is_defined else None

    def direction(self, batch: Batch) -> TensorList:
        """Return u; see the class."""
        us = _ADAM.direction(batch)
        is_defined = rectification(float(batch.group["betas"][1]), batch.pace.age) is not None
        return us if is_defined else batch.gradients


def rectified(group: Group, t: int) -> float:
    """Return the factor of the learning rate in step t, from 1: 0 in a silent phase, else 1.

    A phase that would never end is not silent.
    """
    beta2 = float(group["betas"][1])
    factor = rectification(beta2, t)
    if factor is not None:
        return factor
    return float(not group["silent_sgd_phase"] or _longest(beta2) <= _TRACTABLE)


def rectification(beta2: float, t: int) -> float | None:
    """Return the factor that shortens Adam's step t, or None while the variance is intractable.

    With ρ∞ = 2 / (1 - β₂) - 1 and ρ = ρ∞ - 2 t β₂ᵗ / (1 - β₂ᵗ), where ρ > 4::

        √( (ρ - 4) (ρ - 2) ρ∞ / ((ρ∞ - 4) (ρ∞ - 2) ρ) )

    Args:
        beta2: β₂, >= 0 and < 1.
        t: step, from 1.

    >>> [rectification(0.999, 4), round(rectification(0.999, 5), 5)]
    [None, 0.01731]
    """
    longest = _longest(beta2)
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    if length <= _TRACTABLE:
        return None
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return math.sqrt(ratio)


def _longest(beta2: float) -> float:
    """Return ρ∞, the length of the moving average after infinitely many steps."""
    return 2 / (1 - beta2) - 1
