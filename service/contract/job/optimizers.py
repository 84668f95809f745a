"""The optimizers that a job can name, with every setting typed and bounded.

Short names and the class names of ``optim`` mean the same. Defaults equal the signatures of the
classes, which a test checks; what only affects execution is not for users to set.
"""

from typing import Annotated, Literal

from pydantic import Field

from roadless.service.contract.base import Spec

UnitOpen = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[UnitOpen, Decay]
Scheduler = tuple[Annotated[float, Field(gt=0, le=10)], Annotated[float, Field(gt=0, le=100)]]

_MAX_STEPS = 10**9


class _Rate(Spec):
    """What every optimizer has."""

    lr: float = Field(ge=0, le=1e6)
    weight_decay: float = Field(0.0, ge=0, le=1000)


class _Averaging(_Rate):
    """Weights of the average x: step t counts as t^r * lr^weight_lr_power."""

    r: float = Field(0.0, ge=0, le=100)
    weight_lr_power: float = Field(2.0, ge=0, le=100)


class _ScheduleFree(_Averaging):
    """The schedule-free family with its own warmup."""

    warmup_steps: int = Field(0, ge=0, le=_MAX_STEPS)


# ---- schedule_free ------------------------------------------------------------------------------


class SGDScheduleFreeSpec(_ScheduleFree):
    """Schedule-free SGD."""

    name: Literal[
        "sgd_schedulefree", "SGDScheduleFree", "SGDScheduleFreeReference", "SGDScheduleFreeClosure"
    ]
    lr: float = Field(1.0, ge=0, le=1e6)
    momentum: UnitOpen = 0.9


class AdamWScheduleFreeSpec(_ScheduleFree):
    """Schedule-free AdamW; ``inner_momentum`` is a first moment inside the base step."""

    name: Literal["adamw_schedulefree", "AdamWScheduleFree", "AdamWScheduleFreeClosure"]
    lr: float = Field(0.0025, ge=0, le=1e6)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, le=1)
    inner_momentum: Decay = 0.0


class AdamWScheduleFreeReferenceSpec(AdamWScheduleFreeSpec):
    """Schedule-free AdamW with x, y and z stored; decay may be taken at z."""

    name: Literal["AdamWScheduleFreeReference"]  # type: ignore[assignment]  # another tag
    decay_at_z: bool = False


class AdamWScheduleFreePaperSpec(_ScheduleFree):
    """Schedule-free AdamW as first published: bias correction in the rate."""

    name: Literal["adamw_schedulefree_paper", "AdamWScheduleFreePaper"]
    lr: float = Field(0.0025, ge=0, le=1e6)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, le=1)


class RAdamScheduleFreeSpec(_Averaging):
    """Schedule-free RAdam, which needs no warmup."""

    name: Literal[
        "radam_schedulefree",
        "RAdamScheduleFree",
        "RAdamScheduleFreeReference",
        "RAdamScheduleFreeClosure",
    ]
    lr: float = Field(0.0025, ge=0, le=1e6)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, le=1)
    silent_sgd_phase: bool = True


class AdamCScheduleFreePlusSpec(_Averaging):
    """ScheduleFree+: a Polyak step around the average."""

    name: Literal["adamc_schedulefree_plus", "AdamCScheduleFreePlusPaper"]
    lr: float = Field(1.0, ge=0, le=1e6)
    betas: Betas = (0.9, 0.95)
    sf_beta1: UnitOpen = 0.9
    eps: float = Field(1e-8, gt=0, le=1)
    polyak_beta: Decay = 0.0
    c_warmup: int = Field(0, ge=0, le=_MAX_STEPS)
    sf_beta1_anneal_steps: int = Field(0, ge=0, le=_MAX_STEPS)
    sf_beta1_max: UnitOpen = 0.965


# ---- first-order, HeavyBall's table -------------------------------------------------------------


class FirstOrderSpec(_Rate):
    """AdamW and LaProp, not averaged: the baselines."""

    name: Literal["adamw", "ForeachAdamW", "laprop", "ForeachLaProp"]
    lr: float = Field(0.0025, ge=0, le=1e6)
    betas: Betas = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0, le=_MAX_STEPS)


class ADOPTSpec(FirstOrderSpec):
    """ADOPT, not averaged; ``clip`` clamps its steps as the authors' own code does."""

    name: Literal["adopt", "ForeachADOPT"]  # type: ignore[assignment]  # another tag
    clip: bool = Field(True, description="false: HeavyBall's formula, which may explode")


class ForeachSFAdamWSpec(_ScheduleFree):
    """HeavyBall's schedule-free AdamW."""

    name: Literal["ForeachSFAdamW"]
    lr: float = Field(0.0025, ge=0, le=1e6)
    betas: Betas = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0, le=1)


class PaLMForeachSFAdamWSpec(_ScheduleFree):
    """The same with PaLM's second moment: beta2 = 1 - t^-beta2_scale."""

    name: Literal["PaLMForeachSFAdamW"]
    lr: float = Field(0.0025, ge=0, le=1e6)
    beta: UnitOpen = 0.9
    beta2_scale: float = Field(0.8, gt=0, le=10)
    eps: float = Field(1e-8, gt=0, le=1)


# ---- SOAP ---------------------------------------------------------------------------------------


class _Preconditioned(_Rate):
    """What all forms of SOAP have."""

    lr: float = Field(3e-3, ge=0, le=1e6)
    eps: float = Field(1e-8, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=1000)
    precondition_frequency: int = Field(2, ge=1, le=_MAX_STEPS)
    max_precond_dim: int = Field(2048, ge=1, le=65536)
    merge_dims: bool = True
    precondition_1d: bool = False
    normalize_grads: bool = False
    data_format: Literal["channels_first", "channels_last"] = "channels_first"
    correct_bias: bool = True
    warmup_steps: int = Field(1, ge=0, le=_MAX_STEPS)


class SOAPSpec(_Preconditioned):
    """SOAP with all its options."""

    name: Literal["soap", "SOAP"]
    betas: Betas = (0.9, 0.95)
    warmup_steps: int = Field(0, ge=0, le=_MAX_STEPS)
    gradient_clip_val: float = Field(0.0, ge=0, le=1e6)
    schedule_free: bool = False
    r: float = Field(0.0, ge=0, le=100)
    weight_lr_power: float = Field(2.0, ge=0, le=100)
    palm_beta2: bool = False
    beta2_scale: float = Field(0.8, gt=0, le=10)
    shampoo_beta: Decay | None = Field(None, description="null: that of the second moment")
    precond_schedule: bool = False
    precond_scheduler: Scheduler = (1 / 3, 9)
    precond_timing: Literal["even", "chance"] = "even"
    precond_seed: int = Field(0, ge=0, lt=2**63)


class ForeachSOAPSpec(_Preconditioned):
    """HeavyBall's SOAP."""

    name: Literal["ForeachSOAP"]
    betas: Betas = (0.9, 0.95)
    shampoo_beta: Decay | None = 0.95


class PrecondScheduleForeachSOAPSpec(_Preconditioned):
    """HeavyBall's SOAP, its bases refreshed less and less often."""

    name: Literal["PrecondScheduleForeachSOAP"]
    betas: Betas = (0.9, 0.95)
    shampoo_beta: Decay | None = 0.95
    precond_scheduler: Scheduler = (1 / 3, 9)


class _PaLM(_Preconditioned):
    """PaLM's second moment: beta2 = 1 - t^-beta2_scale."""

    beta: UnitOpen = 0.9
    beta2_scale: float = Field(0.8, gt=0, le=10)


class PaLMForeachSOAPSpec(_PaLM):
    """HeavyBall's SOAP with PaLM's second moment."""

    name: Literal["PaLMForeachSOAP"]
    shampoo_beta: Decay | None = 0.95


class PrecondSchedulePaLMForeachSOAPSpec(PaLMForeachSOAPSpec):
    """Both of them: HeavyBall's recommended one."""

    name: Literal["PrecondSchedulePaLMForeachSOAP"]  # type: ignore[assignment]  # another tag
    precond_scheduler: Scheduler = (1 / 3, 9)


class SFPaLMForeachSOAPSpec(_PaLM):
    """The schedule-free one."""

    name: Literal["SFPaLMForeachSOAP"]
    r: float = Field(0.0, ge=0, le=100)
    weight_lr_power: float = Field(2.0, ge=0, le=100)
    gradient_clip_val: float = Field(0.1, ge=0, le=1e6)


class PrecondScheduleSFPaLMForeachSOAPSpec(SFPaLMForeachSOAPSpec):
    """The schedule-free one, its bases refreshed less and less often."""

    name: Literal[  # type: ignore[assignment]  # another tag
        "PrecondScheduleSFPaLMForeachSOAP", "PrecondScheduleSFPaLMSOAP"
    ]
    precond_scheduler: Scheduler = (1 / 3, 9)


# ---- any optimizer of torch, averaged ------------------------------------------------------------


class TorchAdamSpec(_Rate):
    """torch.optim.Adam or RAdam."""

    name: Literal["Adam", "RAdam"]
    lr: float = Field(1e-3, ge=0, le=1e6)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, le=1)


class TorchAdamWSpec(TorchAdamSpec):
    """torch.optim.AdamW."""

    name: Literal["AdamW"]  # type: ignore[assignment]  # another tag
    weight_decay: float = Field(0.01, ge=0, le=1000)


class TorchNAdamSpec(TorchAdamSpec):
    """torch.optim.NAdam."""

    name: Literal["NAdam"]  # type: ignore[assignment]  # another tag
    lr: float = Field(2e-3, ge=0, le=1e6)


class TorchSGDSpec(_Rate):
    """torch.optim.SGD."""

    name: Literal["SGD"]
    lr: float = Field(1e-3, ge=0, le=1e6)
    momentum: Decay = 0.0
    nesterov: bool = False


class TorchRMSpropSpec(_Rate):
    """torch.optim.RMSprop."""

    name: Literal["RMSprop"]
    lr: float = Field(1e-2, ge=0, le=1e6)
    alpha: Decay = 0.99
    eps: float = Field(1e-8, gt=0, le=1)
    momentum: Decay = 0.0


class TorchAdagradSpec(_Rate):
    """torch.optim.Adagrad."""

    name: Literal["Adagrad"]
    lr: float = Field(1e-2, ge=0, le=1e6)
    eps: float = Field(1e-10, gt=0, le=1)


TorchOptimizerSpec = Annotated[
    TorchAdamSpec
    | TorchAdamWSpec
    | TorchNAdamSpec
    | TorchSGDSpec
    | TorchRMSpropSpec
    | TorchAdagradSpec,
    Field(discriminator="name"),
]


class ScheduleFreeWrapperSpec(Spec):
    """Schedule-free averaging around an optimizer of torch."""

    name: Literal["schedulefree_wrapper", "ScheduleFreeWrapper", "ScheduleFreeWrapperReference"]
    base: TorchOptimizerSpec
    weight_decay_at_y: float = Field(0.0, ge=0, le=1000)
    momentum: UnitOpen = 0.9
    weight_lr_power: float = Field(2.0, ge=0, le=100)
    r: float = Field(0.0, ge=0, le=100)


OptimizerSpec = Annotated[
    SGDScheduleFreeSpec
    | AdamWScheduleFreeSpec
    | AdamWScheduleFreeReferenceSpec
    | AdamWScheduleFreePaperSpec
    | RAdamScheduleFreeSpec
    | AdamCScheduleFreePlusSpec
    | FirstOrderSpec
    | ADOPTSpec
    | ForeachSFAdamWSpec
    | PaLMForeachSFAdamWSpec
    | SOAPSpec
    | ForeachSOAPSpec
    | PrecondScheduleForeachSOAPSpec
    | PaLMForeachSOAPSpec
    | PrecondSchedulePaLMForeachSOAPSpec
    | SFPaLMForeachSOAPSpec
    | PrecondScheduleSFPaLMForeachSOAPSpec
    | ScheduleFreeWrapperSpec,
    Field(discriminator="name"),
]
