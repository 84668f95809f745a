"""LaProp: normalise first, then take the mean; momentum and scale are decoupled."""

from dataclasses import dataclass

import torch

from roadless.optim.rules.adam import check_betas, reciprocal_roots, remember_squares
from roadless.optim.rules.base import Batch, Group, Rule, TensorList
from roadless.optim.rules.moments import debiased_first, debiased_second


@dataclass(frozen=True, slots=True)
class LaProp(Rule):
    """With the coefficients of both averages as in-place EMAs::

        v ← β̂₂ v + (1 - β̂₂) g²
        m ← β̂₁ m + (1 - β̂₁) g / max(√v, ε)
        u = m

    Source: Ziyin, Wang and Ueda 2020, "LaProp: Separating Momentum and Adaptivity in Adam",
    arXiv 2002.04839, algorithm 1.
    """

    def buffer_names(self, _group: Group, /) -> tuple[str, ...]:
        """Return m and v."""
        return ("exp_avg", "exp_avg_sq")

    def check(self, group: Group) -> None:
        """Check betas and ε."""
        check_betas(group)

    def direction(self, batch: Batch) -> TensorList:
        """Return m; see the class."""
        first, second = (
            of(batch.group, batch.pace.age) for of in (debiased_first, debiased_second)
        )
        vs = batch.buffers("exp_avg_sq")
        remember_squares(vs, batch.gradients, second.beta)
        normalised = reciprocal_roots(vs, second, eps=batch.group["eps"], is_clamped=True)
        torch._foreach_mul_(normalised, batch.gradients)
        ms = batch.buffers("exp_avg")
        torch._foreach_lerp_(ms, normalised, 1 - first.beta)
        return ms
