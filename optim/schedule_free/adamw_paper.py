"""Schedule-free AdamW as in the paper, before its authors moved the bias correction."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.rules.adam import Adam, root_of_bias
from roadless.optim.rules.base import Rule
from roadless.optim.rules.moments import uncorrected_second
from roadless.optim.schedule_free.fast import FastScheduleFree


class AdamWScheduleFreePaper(FastScheduleFree):
    """`AdamWScheduleFree` with the bias correction in the learning rate, to reproduce old runs.

    With γ = ``lr`` · min(1, t / ``warmup_steps``) · √(1 - β₂ᵗ), in the decay and in the averaging
    weights too, so that both are smaller early on (in the root t counts a parameter's gradients)::

        z ← z - γ (g / (√v + ε) + λ y)

    Arguments and errors are those of `roadless.optim.AdamWScheduleFree`.

    Example: the minimum of (w - 3)²/2, from 0.

    >>> import torch
    >>> from roadless.optim import AdamWScheduleFreePaper, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = AdamWScheduleFreePaper([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(w.item(), 6), round(averaged_point(optimizer)[w].item(), 6)
    (1.117138, 1.088449)

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, algorithm 1; the rule
    of its authors' library up to release 1.2.7.
    """

    rule: ClassVar[Rule] = Adam(second=uncorrected_second, factor=root_of_bias)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))
