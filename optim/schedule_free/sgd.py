"""Schedule-free SGD: the gradient itself is the direction."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.checks import require_inside_unit_interval
from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.rules.base import Group, Rule
from roadless.optim.rules.sgd import SGD
from roadless.optim.schedule_free.fast import FastScheduleFree


class SGDScheduleFree(FastScheduleFree):
    """SGD without a schedule or a known end; the result, x, is good at every step.

    With g the gradient at y, λ = ``weight_decay``, β = ``momentum``, and γ, c as in
    `roadless.optim.averaging.advance`::

        z ← z - γ (g + λ y)
        x ← (1 - c) x + c z
        y ← (1 - β) z + β x

    The parameters hold y, where gradients are taken. Read x with `roadless.optim.averaged_point`,
    or put it into the parameters temporarily with `roadless.optim.at_average`. State per parameter:
    z.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; often 10 to 50 times that of SGD with momentum. A number or a
            one-element tensor, read at each step, so it may be changed at any time.
        momentum: β, > 0 and < 1; closer to 1 for long runs.
        weight_decay: λ, >= 0, evaluated at y and multiplied by γ.
        warmup_steps: steps of linear warmup of the learning rate, >= 0.
        r: power of the step in the averaging weight, >= 0; 0 weighs all steps alike.
        weight_lr_power: power of the largest learning rate so far in that weight, >= 0.
        foreach: false processes one tensor at a time; true or None groups consecutive small ones
            into lists, which is faster. The result is the same. The size of the lists is chosen for
            the device, so neither form makes a temporary as large as all parameters.

    Raises:
        ValueError: a setting is out of range.

    Example: the minimum of (w - 3)²/2, from 0. With λ = 0 and a constant γ, x is the plain mean of
    all z.

    >>> import torch
    >>> from roadless.optim import SGDScheduleFree, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = SGDScheduleFree([w], lr=0.5, momentum=0.9)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(optimizer.state[w]["z"].item(), 6), round(w.item(), 6)
    (2.79375, 2.2425)
    >>> round(averaged_point(optimizer)[w].item(), 6)
    2.18125

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, equations 2 to 4.
    """

    rule: ClassVar[Rule] = SGD()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2,
        foreach: bool | None = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _beta(self, group: Group) -> float:
        return float(group["momentum"])

    def _check(self, group: Group) -> None:
        require_inside_unit_interval("momentum", group["momentum"])
        super()._check(group)
