"""HeavyBall's six SOAP optimizers: `roadless.optim.SOAP` with 0.7.4's arguments and defaults.

Each says what it is; all differ from 0.7.4, as measured there, in the following:

* Factors there keep 1 - β̂ of their past and take β̂ of the new gradient, in all six, so they are
  little more than the last gradient's. Here they keep β̂; ``shampoo_beta``, unused there, is its β.
* Weight decay there makes weights grow, and in the schedule-free forms has no effect.
* In `SFPaLMForeachSOAP` the second moment there is that of the unrotated gradient.
* In `PrecondScheduleSFPaLMForeachSOAP` z of a bfloat16 parameter there stays where it started.
* ``warmup_steps=0`` there divides by zero; here it means no warmup.
* The generator of scheduled updates there is not saved; here they are spread evenly, without one.
* Where a gradient leaves the basis open (a null space, equal eigenvalues), a rule chooses it here,
  LAPACK there; where rotation leaves only rounding, nothing moves: `roadless.optim.SOAP`.
* Merged dimensions there can be out of order: `roadless.optim.soap.layout.merged`.
* ``r``, ``normalize_grads``, ``data_format`` and ``correct_bias`` there have no effect.
"""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.rules.adam import check_palm_betas
from roadless.optim.rules.base import Group
from roadless.optim.soap.optimizer import SOAP, ScheduleFreeSOAP

#: β, or β and a second number that is not used, as in HeavyBall.
Betas = tuple[float | None, float | None]


class _PaLM(SOAP):
    """Groups have ``beta`` and ``betas`` of their own as the constructor has them."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, at any time; settings that it omits are those of the constructor.

        Raises:
            ValueError: a setting is out of range, or a parameter is already in a group.
        """
        if not {"beta", "betas"}.isdisjoint(param_group):
            beta = param_group.pop("beta", self.defaults["betas"][0])
            betas = param_group.get("betas", (None, None))
            param_group["betas"] = _palm_betas(beta, betas)
        super().add_param_group(param_group)


class ForeachSOAP(SOAP):
    """SOAP with constant β₂, its bases refreshed every ``precondition_frequency`` steps.

    Equations, arguments and errors are those of `roadless.optim.SOAP`; differences from HeavyBall
    0.7.4 are listed in `roadless.optim.soap.heavyball`.

    >>> import torch
    >>> from roadless.optim import ForeachSOAP
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    >>> optimizer = ForeachSOAP([w], lr=0.5)
    >>> for _ in range(4):
    ...     optimizer.zero_grad()
    ...     (w**2 / 2).sum().backward()
    ...     optimizer.step()
    >>> w.detach().round(decimals=2)
    tensor([[1.4900, 0.9600],
            [0.9600, 0.5300]], dtype=torch.float64)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        shampoo_beta: float | None = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 2,
        max_precond_dim: int = 2048,
        merge_dims: bool = True,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: str = "channels_first",
        correct_bias: bool = True,
        warmup_steps: int = 1,
    ) -> None:
        super().__init__(params, **settings_of(locals()))


class PrecondScheduleForeachSOAP(SOAP):
    """`ForeachSOAP` with its bases refreshed less and less often: `roadless.optim.soap.schedule`.

    ``precond_scheduler`` replaces ``precondition_frequency``, which has no effect.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        shampoo_beta: float | None = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 2,
        max_precond_dim: int = 2048,
        merge_dims: bool = True,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: str = "channels_first",
        correct_bias: bool = True,
        warmup_steps: int = 1,
        precond_scheduler: tuple[float, float] = (1 / 3, 9),
    ) -> None:
        super().__init__(params, **settings_of(locals()), precond_schedule=True)


class PaLMForeachSOAP(_PaLM):
    """`ForeachSOAP` with PaLM's growing β₂ in place of a constant one.

    ``beta`` is β₁; ``betas``, if its first entry is given, overrides it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        beta: float = 0.9,
        betas: Betas = (None, None),
        shampoo_beta: float | None = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 2,
        max_precond_dim: int = 2048,
        merge_dims: bool = True,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: str = "channels_first",
        correct_bias: bool = True,
        warmup_steps: int = 1,
        beta2_scale: float = 0.8,
    ) -> None:
        super().__init__(params, **_palm(locals()))


class PrecondSchedulePaLMForeachSOAP(_PaLM):
    """`PaLMForeachSOAP` with its bases refreshed less and less often: HeavyBall's recommendation.

    ``precond_scheduler`` replaces ``precondition_frequency``, which has no effect.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        beta: float = 0.9,
        shampoo_beta: float | None = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 2,
        max_precond_dim: int = 2048,
        merge_dims: bool = True,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: str = "channels_first",
        correct_bias: bool = True,
        warmup_steps: int = 1,
        precond_scheduler: tuple[float, float] = (1 / 3, 9),
        betas: Betas = (None, None),
        beta2_scale: float = 0.8,
    ) -> None:
        super().__init__(params, **_palm(locals()), precond_schedule=True)


class SFPaLMForeachSOAP(_PaLM, ScheduleFreeSOAP):
    """Schedule-free SOAP with PaLM's β₂ and adaptive clipping; the result is x.

    ``beta``, > 0 and < 1, is y's interpolation; the first of ``betas``, if given, overrides it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        beta: float = 0.9,
        beta2_scale: float = 0.8,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 2,
        max_precond_dim: int = 2048,
        merge_dims: bool = True,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: str = "channels_first",
        correct_bias: bool = True,
        warmup_steps: int = 1,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        gradient_clip_val: float = 0.1,
        betas: Betas = (None, None),
    ) -> None:
        super().__init__(params, **_palm(locals()))


class PrecondScheduleSFPaLMForeachSOAP(_PaLM, ScheduleFreeSOAP):
    """`SFPaLMForeachSOAP`, refreshed less and less often; also named `PrecondScheduleSFPaLMSOAP`.

    ``precond_scheduler`` replaces ``precondition_frequency``, which has no effect.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        beta: float = 0.9,
        beta2_scale: float = 0.8,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 2,
        max_precond_dim: int = 2048,
        merge_dims: bool = True,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        data_format: str = "channels_first",
        correct_bias: bool = True,
        warmup_steps: int = 1,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        gradient_clip_val: float = 0.1,
        precond_scheduler: tuple[float, float] = (1 / 3, 9),
        betas: Betas = (None, None),
    ) -> None:
        super().__init__(params, **_palm(locals()), precond_schedule=True)


#: HeavyBall 0.7.4's spelling in code.
PrecondScheduleSFPaLMSOAP = PrecondScheduleSFPaLMForeachSOAP


def _palm(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for PaLM's β₂, with ``beta`` as the first of ``betas``."""
    arguments = settings_of(variables)
    beta, betas = arguments.pop("beta"), arguments["betas"]
    return arguments | {"betas": _palm_betas(beta, betas), "palm_beta2": True}


def _palm_betas(beta: Any, betas: Any) -> tuple[Any, float]:
    check_palm_betas(betas)
    # The second is not used with PaLM's β₂, but every group must have a number.
    return beta if betas[0] is None else betas[0], 0.0
