"""Adam's direction: the gradient, or its mean, over the root of its second moment."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roadless.optim.backends import form
from roadless.optim.checks import (
    require_above_zero,
    require_at_least_zero,
    require_ema_coefficient,
    require_inside_unit_interval,
    require_pair,
)
from roadless.optim.rules.base import Batch, Group, Rule, TensorList
from roadless.optim.rules.moments import Ema, Policy, corrected_second


def check_betas(group: Group) -> None:
    """Check ``betas``, β₁ inside (0, 1) and β₂ in [0, 1), and ``eps`` >= 0.

    Raises:
        ValueError: naming the setting.
    """
    require_pair("betas", group["betas"])
    require_inside_unit_interval("betas[0]", group["betas"][0])
    require_ema_coefficient("betas[1]", group["betas"][1])
    require_at_least_zero(group, "eps")


def check_inner_momentum(group: Group) -> None:
    """Check ``betas``, ``eps``, and ``inner_momentum`` in [0, 1).

    Raises:
        ValueError: naming the setting.
    """
    check_betas(group)
    require_ema_coefficient("inner_momentum", group["inner_momentum"])


def check_palm(group: Group) -> None:
    """Check ``beta`` inside (0, 1), ``eps`` >= 0 and ``beta2_scale`` > 0.

    Raises:
        ValueError: naming the setting.
    """
    require_inside_unit_interval("beta", group["beta"])
    require_at_least_zero(group, "eps")
    require_above_zero(group, "beta2_scale")


def check_palm_betas(betas: Any) -> None:
    """Check HeavyBall's ``betas`` for PaLM's β₂: None, or β₁; and None, or a number not used.

    Raises:
        ValueError: naming the setting.
    """
    require_pair("betas", betas)
    if betas[0] is not None:
        require_ema_coefficient("betas[0]", betas[0])
    if betas[1] is not None:
        require_ema_coefficient("betas[1]", betas[1])


def no_first(_group: Group, _t: int) -> None:
    """No first moment: schedule-free's interpolation takes its place."""


def inner_first(group: Group, t: int) -> Ema | None:
    """Adam's first moment with ``inner_momentum``, bias-corrected; none where that is 0."""
    momentum = float(group["inner_momentum"])
    return Ema(momentum, 1 - momentum**t) if momentum else None


def no_factor(_group: Group, _t: int) -> float:
    """The learning rate stays what it is."""
    return 1.0


def root_of_bias(group: Group, t: int) -> float:
    """√(1 - β₂ᵗ): the correction of v moved into the learning rate, as in the paper's section 2."""
    return math.sqrt(1 - float(group["betas"][1]) ** t)


@dataclass(frozen=True, slots=True)
class Adam(Rule):
    """Adam's direction; without a first moment, m is the gradient g itself::

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        u = (m / bias₁) / (√(v / bias₂) + ε)      or, clamped, over max(√(v / bias₂), ε)

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    #: β₂ and bias₂ of a step.
    second: Policy = corrected_second
    #: β₁ and bias₁ of a step, or None.
    first: Callable[[Group, int], Ema | None] = no_first
    #: Whether ε is the smallest denominator, as in HeavyBall, instead of a summand.
    is_clamped: bool = False
    #: Factor of the learning rate: 1, or `root_of_bias`.
    factor: Callable[[Group, int], float] = no_factor
    #: Raises ValueError for settings out of range.
    check_settings: Callable[[Group], None] = check_betas

    def buffer_names(self, group: Group, /) -> tuple[str, ...]:
        """Return v, and m where there is a first moment."""
        return ("exp_avg_sq",) if self.first(group, 1) is None else ("exp_avg_sq", "exp_avg")

    def check(self, group: Group) -> None:
        """Check the settings that this form of Adam has."""
        self.check_settings(group)

    def lr_factor(self, group: Group, t: int, /) -> float:
        """Return `factor` of the step."""
        return self.factor(group, t)

    def kernel(self, group: Group, t: int, /) -> form.Adam | None:
        """Return β and bias of both moments, with ε as a floor or a summand; none without ε."""
        if not group["eps"]:
            return None
        second, first = self.second(group, t), self.first(group, t) or Ema(0.0, 1.0)
        return form.Adam(
            beta2=second.beta,
            v_scale=1 / second.correction,
            eps=0.0 if self.is_clamped else group["eps"],
            floor=group["eps"] if self.is_clamped else 0.0,
            beta1=first.beta,
            m_scale=1 / first.correction,
        )

    def direction(self, batch: Batch) -> TensorList:
        """Return u; see the class."""
        group, t = batch.group, batch.pace.age
        second, first = self.second(group, t), self.first(group, t)
        vs = batch.buffers("exp_avg_sq")
        remember_squares(vs, batch.gradients, second.beta)
        us = reciprocal_roots(vs, second, eps=group["eps"], is_clamped=self.is_clamped)
        if first is None:
            torch._foreach_mul_(us, batch.gradients)
            return us
        ms = batch.buffers("exp_avg")
        torch._foreach_lerp_(ms, batch.gradients, 1 - first.beta)
        torch._foreach_mul_(us, ms)
        if first.correction != 1:
            torch._foreach_div_(us, first.correction)
        return us


def remember_squares(vs: TensorList, gradients: TensorList, beta2: float) -> None:
    """Update v ← β₂ v + (1 - β₂) g² in place."""
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, gradients, gradients, value=1 - beta2)


def reciprocal_roots(vs: TensorList, second: Ema, *, eps: float, is_clamped: bool) -> TensorList:
    """Return 1 / (√(v / bias₂) + ε), or 1 / max(√(v / bias₂), ε), as new tensors.

    Where all of that is 0, so is the result: with ε = 0, an element that has had no gradient rests,
    where 0 / 0 would make it NaN. Multiplying by the reciprocal needs one temporary; dividing would
    need a second one.
    """
    roots = list(torch._foreach_div(vs, second.correction))
    torch._foreach_sqrt_(roots)
    if is_clamped:
        torch._foreach_clamp_min_(roots, eps)
    else:
        torch._foreach_add_(roots, eps)
    if not eps:
        for root in roots:
            root.masked_fill_(root == 0, math.inf)
    torch._foreach_reciprocal_(roots)
    return roots


def over_root(m: Tensor, v: Tensor, eps: float) -> Tensor:
    """Return m / (√v + ε), and 0 where that would be 0 / 0."""
    u = m / (torch.sqrt(v) + eps)
    return u if eps else u.masked_fill(v == 0, 0.0)
