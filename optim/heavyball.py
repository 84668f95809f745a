"""HeavyBall's first-order optimizers, with the names and arguments of 0.7.4.

All of them use in-place EMAs (`roadless.optim.rules.moments.debiased`), the clamped denominator
max(√v, ε), and decoupled weight decay. Errors of 0.7.4 are corrected: decay shrinks weights (there
it grows them), ``warmup_steps=0`` means no warmup (there it divides by zero).
"""

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.checks import require_inside_unit_interval
from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.core.descent import Descent
from roadless.optim.rules.adam import Adam, check_palm, check_palm_betas
from roadless.optim.rules.adopt import ADOPT
from roadless.optim.rules.base import Group, Rule
from roadless.optim.rules.laprop import LaProp
from roadless.optim.rules.moments import debiased_first, debiased_palm_second, debiased_second
from roadless.optim.schedule_free.fast import FastScheduleFree


class _FirstOrder(Descent):
    """The signature shared by the two that have no settings of their own."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(params, settings_of(locals()))


class ForeachAdamW(_FirstOrder):
    """AdamW that needs no bias correction, because its averages are unbiased at every step.

    With γ = ``lr`` · min(1, t / ``warmup_steps``), λ = ``weight_decay``, and β̂₁, β̂₂ the in-place
    EMAs of ``betas``::

        v ← β̂₂ v + (1 - β̂₂) g²
        m ← β̂₁ m + (1 - β̂₁) g
        p ← p - γ (m / max(√v, ε) + λ p)

    Takes the same steps as ``torch.optim.AdamW``, except for the place of ε. In 0.7.4 it is not
    exported and does not run.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; a number or a one-element tensor, read at each step.
        betas: β₁, > 0 and < 1; and β₂, >= 0 and < 1.
        eps: ε, the smallest denominator, >= 0; with 0 an element rests until it has a gradient.
        weight_decay: λ, >= 0, multiplied by γ.
        warmup_steps: steps of linear warmup of the learning rate, >= 0.

    Raises:
        ValueError: a setting is out of range.

    >>> import torch
    >>> from roadless.optim import ForeachAdamW
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = ForeachAdamW([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(w.item(), 6)
    1.48306

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2.
    """

    rule: ClassVar[Rule] = Adam(second=debiased_second, first=debiased_first, is_clamped=True)


class ForeachLaProp(_FirstOrder):
    """LaProp: the mean of normalised gradients instead of the normalised mean.

    With γ, λ, β̂₁, β̂₂ and arguments as in `ForeachAdamW`::

        v ← β̂₂ v + (1 - β̂₂) g²
        m ← β̂₁ m + (1 - β̂₁) g / max(√v, ε)
        p ← p - γ (m + λ p)

    >>> import torch
    >>> from roadless.optim import ForeachLaProp
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = ForeachLaProp([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(w.item(), 6)
    1.422338

    Source: Ziyin, Wang and Ueda 2020, arXiv 2002.04839, algorithm 1.
    """

    rule: ClassVar[Rule] = LaProp()


class ForeachADOPT(Descent):
    """ADOPT: a gradient is normalised by those before it, never by itself.

    A parameter's first gradient sets v = g² and moves nothing. At the t-th after it, with
    (β₁, β₂) = ``betas``, and γ and λ as in `ForeachAdamW`, in this order, which is the paper's::

        m ← β₁ m + (1 - β₁) clamp(g / max(√v, ε), -t^¼, t^¼)
        p ← p - γ (m + λ p)
        v ← β₂ v + (1 - β₂) g²

    These are the steps of the authors' own code with ``decouple=True``
    (github.com/iShohei220/adopt, whose default ``clip_lambda`` is t^¼). The clamp is for elements
    whose first gradient is 0, as in LoRA, embeddings and dead units: without it, their next step is
    g / ε long.

    With ``clip=False`` the formula is HeavyBall 3.2.1's: no clamp, and in-place EMAs β̂₁, β̂₂
    instead of constant betas. 0.7.4 has it too, but applies each m one step late.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; a number or a one-element tensor, read at each step.
        betas: β₁, > 0 and < 1; and β₂, >= 0 and < 1; the authors' default is (0.9, 0.9999).
        eps: ε, the smallest denominator, >= 0; the authors' default is 1e-6.
        weight_decay: λ, >= 0, multiplied by γ.
        warmup_steps: steps of linear warmup of the learning rate, >= 0.
        clip: whether to clamp, as the authors do; false takes HeavyBall's formula.

    Raises:
        ValueError: a setting is out of range.

    >>> import torch
    >>> from roadless.optim import ForeachADOPT
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = ForeachADOPT([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(w.item(), 6)
    0.144167

    Source: Taniguchi et al. 2024, arXiv 2411.02853, algorithm 2.
    """

    rule: ClassVar[Rule] = ADOPT()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        clip: bool = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _complete(self, group: Group, own: Group) -> None:
        # A state of a release without a clamp goes on without one.
        group.setdefault("clip", False)
        super()._complete(group, own)


class ForeachSFAdamW(FastScheduleFree):
    """Schedule-free AdamW with an unbiased second moment and a clamped denominator.

    Like `roadless.optim.AdamWScheduleFree`, with the same γ, c, z, x and y, but u = g / max(√v, ε)
    and v ← β̂₂ v + (1 - β̂₂) g². Unlike in HeavyBall, the averaging weights use ``r`` (0.7.4
    ignores it) and the largest learning rate so far, so that lowering it does not shrink them; and
    z moves in bfloat16 too (there it is overwritten by its old value).

    HeavyBall 3.2.1 counts warmup from zero: its ``SFAdamW(warmup_steps=w)`` is this with w + 1.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; a number or a one-element tensor, read at each step.
        betas: β, > 0 and < 1, closer to 1 for long runs; and β₂, >= 0 and < 1.
        eps: ε, the smallest denominator, >= 0; with 0 an element rests until it has a gradient.
        weight_decay: λ, >= 0, decoupled, evaluated at y and multiplied by γ.
        warmup_steps: steps of linear warmup of the learning rate, >= 0.
        r: power of the step in the averaging weight, >= 0; 0 weighs all steps alike.
        weight_lr_power: power of the largest learning rate so far in that weight, >= 0.
        foreach: false processes one tensor at a time; see `roadless.optim.AdamWScheduleFree`.

    Raises:
        ValueError: a setting is out of range.

    >>> import torch
    >>> from roadless.optim import ForeachSFAdamW, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = ForeachSFAdamW([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(averaged_point(optimizer)[w].item(), 6)
    0.946222

    Source: Defazio et al. 2024, arXiv 2405.15682, algorithm 1.
    """

    rule: ClassVar[Rule] = Adam(second=debiased_second, is_clamped=True)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))


class PaLMForeachSFAdamW(FastScheduleFree):
    """`ForeachSFAdamW` with PaLM's β₂ = 1 - t⁻ˢ, s = ``beta2_scale``, which needs no tuning.

    Args:
        params: parameters, or parameter-group dicts, each with its own settings.
        lr: learning rate, >= 0; a number or a one-element tensor, read at each step.
        beta: β, > 0 and < 1, closer to 1 for long runs.
        betas: a pair whose first, unless None, is used as β; the second is not used. In the groups
            it is left for torch's OneCycleLR and CyclicLR, which set it where they cycle momentum;
            while it is None there, β is the group's ``beta``.
        eps: ε, the smallest denominator, >= 0; with 0 an element rests until it has a gradient.
        weight_decay: λ, >= 0, decoupled, evaluated at y and multiplied by γ.
        warmup_steps: steps of linear warmup of the learning rate, >= 0.
        r: power of the step in the averaging weight, >= 0; 0 weighs all steps alike.
        weight_lr_power: power of the largest learning rate so far in that weight, >= 0.
        beta2_scale: s, > 0.

    Raises:
        ValueError: a setting is out of range.

    >>> import torch
    >>> from roadless.optim import PaLMForeachSFAdamW, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = PaLMForeachSFAdamW([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(averaged_point(optimizer)[w].item(), 6)
    0.965786

    Source: Defazio et al. 2024, arXiv 2405.15682, algorithm 1; Chowdhery et al. 2022, arXiv
    2204.02311, section 5.
    """

    rule: ClassVar[Rule] = Adam(
        second=debiased_palm_second, is_clamped=True, check_settings=check_palm
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        beta: float = 0.9,
        betas: tuple[float | None, float | None] = (None, None),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        beta2_scale: float = 0.8,
    ) -> None:
        settings = settings_of(locals())
        check_palm_betas(betas)
        settings |= {"beta": beta if betas[0] is None else betas[0], "betas": (None, None)}
        super().__init__(params, settings)

    def _check(self, group: Group) -> None:
        check_palm_betas(group["betas"])
        if group["betas"][0] is not None:
            require_inside_unit_interval("betas[0]", group["betas"][0])
        super()._check(group)

    def _beta(self, group: Group) -> float:
        first = group["betas"][0]
        return float(group["beta"] if first is None else first)
