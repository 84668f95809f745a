"""ADOPT: normalise by the second moment of earlier steps, which makes any β₂ converge."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from roadless.optim.checks import require_bool
from roadless.optim.rules.adam import check_betas, reciprocal_roots, remember_squares
from roadless.optim.rules.base import Batch, Group, Rule, State, TensorList
from roadless.optim.rules.moments import Ema, debiased_first, debiased_second


@dataclass(frozen=True, slots=True)
class ADOPT(Rule):
    """The first gradient of a parameter sets v = g² and moves nothing; at the t-th after it::

        m ← β₁ m + (1 - β₁) clamp(g / max(√v, ε), -t^¼, t^¼)
        u = m
        v ← β₂ v + (1 - β₂) g²

    An element whose first gradient is 0, as in a LoRA pair, an absent row of an embedding or a dead
    unit, has v = 0: without the clamp, its next step would be g / ε, 10⁸ times too long.

    Where ``group["clip"]`` is false, HeavyBall 3.2.1's formula: no clamp, and in-place EMAs of both
    betas, β̂₁ and β̂₂, in place of constant ones.

    Source: Taniguchi et al. 2024, "ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal
    Rate", arXiv 2411.02853, algorithm 2; the clamp is that of the authors' code
    (github.com/iShohei220/adopt, ``clip_lambda``), which takes it as the default.
    """

    rests_first: ClassVar[bool] = True

    def buffer_names(self, _group: Group, /) -> tuple[str, ...]:
        """Return m and v."""
        return ("exp_avg", "exp_avg_sq")

    def check(self, group: Group) -> None:
        """Check betas, ε and ``clip``."""
        check_betas(group)
        require_bool({"clip": True} | group, "clip")

    def start(self, point: Tensor, gradient: Tensor, _group: Group, /) -> State:
        """Return m = 0 and v = g²."""
        m = torch.zeros_like(point, memory_format=torch.preserve_format)
        return {"exp_avg": m, "exp_avg_sq": gradient.to(point.dtype).square()}

    def direction(self, batch: Batch) -> TensorList:
        """Return m; see the class."""
        ms, vs = batch.buffers("exp_avg"), batch.buffers("exp_avg_sq")
        group, t = batch.group, batch.pace.age - 1
        normalised = reciprocal_roots(vs, Ema(0.0, 1.0), eps=group["eps"], is_clamped=True)
        torch._foreach_mul_(normalised, batch.gradients)
        if group["clip"]:
            torch._foreach_clamp_min_(normalised, -(t**0.25))
            torch._foreach_clamp_max_(normalised, t**0.25)
            beta1, beta2 = (float(beta) for beta in group["betas"])
        else:
            # m has seen one gradient fewer than v: the first only set v.
            beta1, beta2 = debiased_first(group, t).beta, debiased_second(group, t + 1).beta
        torch._foreach_lerp_(ms, normalised, 1 - beta1)
        remember_squares(vs, batch.gradients, beta2)
        return ms
