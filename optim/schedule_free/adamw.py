"""Schedule-free AdamW: the gradient over the root of its bias-corrected second moment."""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.rules.adam import Adam, check_inner_momentum, inner_first
from roadless.optim.rules.base import Rule
from roadless.optim.schedule_free.fast import FastScheduleFree


class AdamWScheduleFree(FastScheduleFree):
    """AdamW without a schedule or a known end; the result, x, is good at every step.

    With g the parameter's t-th gradient, taken at y, λ = ``weight_decay``, (β, β₂) = ``betas``, and
    γ, c as in `roadless.optim.averaging.advance`::

        v ← β₂ v + (1 - β₂) g²
        z ← z - γ (g / (√(v / (1 - β₂ᵗ)) + ε) + λ y)
        x ← (1 - c) x + c z
        y ← (1 - β) z + β x

    t is the step from 1, less those in which the parameter had no gradient, so that one that is
    unfrozen late starts with steps of length γ as well (schedulefree 1.4.1 counts them in).

    There is no first moment: the interpolation of y takes its place. With μ = ``inner_momentum``
    above 0 there is one inside the step of z too, Adam's own, and g / (...) becomes m̂ / (...)::

        m ← μ m + (1 - μ) g,  m̂ = m / (1 - μᵗ)

    The parameters hold y, where gradients are taken. Read x with `roadless.optim.averaged_point`,
    or put it into the parameters temporarily with `roadless.optim.at_average`. State per parameter:
    z, v (``exp_avg_sq``) and, with μ above 0, m (``exp_avg``).

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; often 1 to 10 times that of AdamW with a schedule. A number or a
            one-element tensor, read at each step, so it may be changed at any time.
        betas: β, > 0 and < 1, closer to 1 for long runs; and β₂, >= 0 and < 1.
        eps: ε, >= 0; with 0 an element rests until it has a gradient.
        weight_decay: λ, >= 0, decoupled, evaluated at y and multiplied by γ.
        warmup_steps: steps of linear warmup of the learning rate, >= 0.
        r: power of the step in the averaging weight, >= 0; 0 weighs all steps alike.
        weight_lr_power: power of the largest learning rate so far in that weight, >= 0.
        foreach: false processes one tensor at a time; true or None groups consecutive small ones
            into lists, which is faster. The result is the same. The size of the lists is chosen for
            the device, so neither form makes a temporary as large as all parameters.
        inner_momentum: μ, >= 0 and < 1; the authors' library has it only in its unreleased head.
            The method is stated for any base step (arXiv 2405.15682, section 2); this is Adam's.

    Raises:
        ValueError: a setting is out of range.

    Example: the minimum of (w - 3)²/2, from 0. The first step has length γ, as in Adam.

    >>> import torch
    >>> from roadless.optim import AdamWScheduleFree, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = AdamWScheduleFree([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(optimizer.state[w]["z"].item(), 6), round(w.item(), 6)
    (1.385234, 0.989903)
    >>> round(averaged_point(optimizer)[w].item(), 6)
    0.945978

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, algorithm 1, with the
    bias correction in the denominator only, as in release 1.3 and later of its authors' library.
    """

    rule: ClassVar[Rule] = Adam(first=inner_first, check_settings=check_inner_momentum)

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
        inner_momentum: float = 0.0,
    ) -> None:
        super().__init__(params, settings_of(locals()))
