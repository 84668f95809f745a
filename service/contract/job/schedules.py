"""The learning-rate schedules that a job can name, for scheduled baselines beside schedule-free.

The rate of step t is the optimizer's ``lr`` times the schedule. Fields are the arguments of
``roadless.optim.schedules.by_name``, under their names.
"""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from roadless.service.contract.base import Spec

MAX_STEPS = 10**9
Fraction = Annotated[float, Field(ge=0, le=1)]
DecayType = Literal["linear", "sqrt"]
#: How many steps a share of them is.
StepsOf = Callable[[float, int], int]


class _Warmup(Spec):
    """A linear rise to the full rate, which every schedule can begin with."""

    warmup_steps: int = Field(0, ge=0, le=MAX_STEPS, description="steps below the full rate")
    warmup_lr: Fraction = Field(1e-10, description="the first rate, as a fraction of the full one")


class _Ending(_Warmup):
    """A schedule that ends at ``final_lr``."""

    final_lr: Fraction = Field(0.0, description="the last rate, as a fraction of the full one")


class ConstantScheduleSpec(_Warmup):
    """The full rate throughout; needs no horizon."""

    name: Literal["constant"]


class _Cooldown(_Ending):
    """A schedule that may end with a cooldown to ``final_lr``."""

    cooldown_len: Fraction = Field(0.0, description="fraction of all steps used for the cooldown")
    decay_type: DecayType = "linear"


class WSDScheduleSpec(_Cooldown):
    """Warmup, stable, decay: the full rate, then a cooldown over the last steps."""

    name: Literal["wsd"]
    cooldown_len: Fraction = Field(0.2, description="fraction of all steps used for the cooldown")


class CosineScheduleSpec(_Ending):
    """Half a cosine from the full rate to the last one."""

    name: Literal["cosine"]


class LinearScheduleSpec(_Ending):
    """A straight line from the full rate to the last one."""

    name: Literal["linear"]


class OneMinusSqrtScheduleSpec(_Ending):
    """1 - sqrt(t / T): fast at first, slow at the end."""

    name: Literal["one_minus_sqrt"]


class SqrtScheduleSpec(_Cooldown):
    """1 / sqrt(t); without a cooldown it needs no horizon."""

    name: Literal["sqrt"]


class PiecewiseConstantScheduleSpec(_Warmup):
    """The rate times ``factors[i]`` from step ``milestones[i]`` on; needs no horizon."""

    name: Literal["piecewise_constant"]
    milestones: tuple[Annotated[int, Field(ge=1, le=MAX_STEPS)], ...] = Field((), max_length=1000)
    factors: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = Field((), max_length=1000)

    @model_validator(mode="after")
    def _milestones_and_factors_pair_up(self) -> Self:
        if len(self.milestones) != len(self.factors):
            raise ValueError(
                f"expected a factor for each of {len(self.milestones)} milestones, "
                f"saw {len(self.factors)}"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"expected ascending milestones, saw {list(self.milestones)}")
        return self


class PolynomialBackwardScheduleSpec(_Ending):
    """((T + 1 - t) / T)^alpha, scaled to end at ``final_lr``."""

    name: Literal["polynomial_backward"]
    alpha: float = Field(1.0, gt=0, le=100)


class PolynomialCooldownScheduleSpec(_Cooldown):
    """1 / t^alpha; without a cooldown it needs no horizon."""

    name: Literal["polynomial_cooldown"]
    alpha: float = Field(1.0, gt=0, le=100)


ScheduleSpec = Annotated[
    ConstantScheduleSpec
    | WSDScheduleSpec
    | CosineScheduleSpec
    | LinearScheduleSpec
    | OneMinusSqrtScheduleSpec
    | SqrtScheduleSpec
    | PiecewiseConstantScheduleSpec
    | PolynomialBackwardScheduleSpec
    | PolynomialCooldownScheduleSpec,
    Field(discriminator="name"),
]


def has_cooldown_length(schedule: ScheduleSpec) -> bool:
    """Whether the length of the cooldown can be set."""
    return isinstance(schedule, _Cooldown)


def has_horizon(schedule: ScheduleSpec) -> bool:
    """Whether the rates depend on the number of steps, so that it must be known beforehand."""
    match schedule:
        case ConstantScheduleSpec() | PiecewiseConstantScheduleSpec():
            return False
        case SqrtScheduleSpec() | PolynomialCooldownScheduleSpec() | WSDScheduleSpec():
            return schedule.cooldown_len > 0
        case _:
            return True


def cooldown_of(schedule: ScheduleSpec) -> float:
    """The share of all steps that the cooldown takes; 0 for schedules without one."""
    return getattr(schedule, "cooldown_len", 0.0)


def whole_steps(share: float, num_steps: int) -> int:
    """Return a share of the steps, rounded as optim does: cut, 0.29 of 100 would be 28."""
    return round(share * num_steps)


def cut_steps(share: float, num_steps: int) -> int:
    """Return a share of the steps, cut: never more than its whole steps are."""
    return int(share * num_steps)


def check_parts(
    schedule: ScheduleSpec, cooldown_len: float, *, num_steps: int, steps_of: StepsOf
) -> None:
    """Raise ValueError unless the warmup and a cooldown of this length fit within the steps."""
    parts = schedule.warmup_steps + steps_of(cooldown_len, num_steps)
    if parts > num_steps:
        raise ValueError(
            f"expected warmup and cooldown within the {num_steps} steps, saw {parts} steps"
        )
