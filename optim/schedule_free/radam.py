"""Schedule-free RAdam: the warmup follows from the variance of the second moment."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.rules.base import Rule
from roadless.optim.rules.radam import RAdam
from roadless.optim.schedule_free.fast import FastScheduleFree


class RAdamScheduleFree(FastScheduleFree):
    """Schedule-free AdamW whose learning rate is rectified instead of warmed up.

    Like `roadless.optim.AdamWScheduleFree`, with γ = ``lr`` · rectification(β₂, t), in the step,
    the decay and the averaging weights alike. While the rectification is undefined (for β₂ = 0.999
    a parameter's first 4 gradients), v is accumulated and nothing moves. For β₂ <= 0.6 it is never
    defined, and all steps are plain gradient steps of the full ``lr``, as in torch 2.13.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; a number or a one-element tensor, read at each step.
        betas: β, > 0 and < 1, closer to 1 for long runs; and β₂, >= 0 and < 1.
        eps: ε, >= 0; with 0 an element rests until it has a gradient.
        weight_decay: λ, >= 0, decoupled, evaluated at y and multiplied by γ.
        r: power of the step in the averaging weight, >= 0; 0 weighs all steps alike.
        weight_lr_power: power of the largest γ so far in that weight, >= 0.
        foreach: false processes one tensor at a time; see `roadless.optim.AdamWScheduleFree`.
        silent_sgd_phase: false takes plain gradient steps of the full ``lr`` while the
            rectification is not defined yet. Their weight in the average is that of the full rate,
            so that all later steps weigh as much.

    Raises:
        ValueError: a setting is out of range.

    Example: the minimum of (w - 3)²/2, from 0. Step 5 is the first to move.

    >>> import torch
    >>> from roadless.optim import RAdamScheduleFree, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = RAdamScheduleFree([w], lr=0.5)
    >>> for t in range(7):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(w.item(), 6), round(averaged_point(optimizer)[w].item(), 6)
    (0.029171, 0.028209)

    Source: Liu et al. 2020, arXiv 1908.03265, algorithm 2, inside Defazio et al. 2024, "The Road
    Less Scheduled", arXiv 2405.15682, algorithm 1.
    """

    rule: ClassVar[Rule] = RAdam()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
        silent_sgd_phase: bool = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))
