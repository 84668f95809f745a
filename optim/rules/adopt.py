"""ADOPT: normalise by the second moment of earlier steps, which makes any β₂ converge."""

from dataclasses import dataclass

import torch
from torch import Tensor

from roadless.optim.rules.adam import check_betas, reciprocal_roots, remember_squares
from roadless.optim.rules.base import Batch, Group, Rule, State, TensorList
from roadless.optim.rules.moments import Ema, debiased_first, debiased_second


@dataclass(frozen=True, slots=True)
class ADOPT(Rule):
    """The first gradient of a parameter sets v = g² and moves nothing; later, in this order::

        m ← β̂₁ m + (1 - β̂₁) g / max(√v, ε)
        u = m
        v ← β̂₂ v + (1 - β̂₂) g²

    Source: Taniguchi et al. 2024, "ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal
    Rate", arXiv 2411.02853, algorithm 2.
    """

    rests_first = True

    def buffer_names(self, _group: Group, /) -> tuple[str, ...]:
        """Return m and v."""
        return ("exp_avg", "exp_avg_sq")

    def check(self, group: Group) -> None:
        """Check betas and ε."""
        check_betas(group)

    def start(self, point: Tensor, gradient: Tensor, _group: Group, /) -> State:
        """Return m = 0 and v = g²."""
        m = torch.zeros_like(point, memory_format=torch.preserve_format)
        return {"exp_avg": m, "exp_avg_sq": gradient.to(point.dtype).square()}

    def direction(self, batch: Batch) -> TensorList:
        """Return m; see the class."""
        ms, vs = batch.buffers("exp_avg"), batch.buffers("exp_avg_sq")
        eps, t = batch.group["eps"], batch.pace.t
        normalised = reciprocal_roots(vs, Ema(0.0, 1.0), eps=eps, is_clamped=True)
        torch._foreach_mul_(normalised, batch.gradients)
        # m has seen one gradient fewer than v: the first only set v.
        torch._foreach_lerp_(ms, normalised, 1 - debiased_first(batch.group, t - 1).beta)
        remember_squares(vs, batch.gradients, debiased_second(batch.group, t).beta)
        return ms
