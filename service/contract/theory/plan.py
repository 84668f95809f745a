"""What the theory says about runs that are only planned: ``POST /v1/plan``."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from roadless.service.contract.base import Resource, Spec
from roadless.service.contract.job.schedules import (
    ConstantScheduleSpec,
    CosineScheduleSpec,
    LinearScheduleSpec,
    OneMinusSqrtScheduleSpec,
    ScheduleSpec,
    WSDScheduleSpec,
)
from roadless.service.contract.theory.analysis import MAX_EXTENSION, Computed, Extension

#: Between these, distances, gradient norms and rates have bounds within double precision.
SMALLEST: Final = 1e-12
LARGEST: Final = 1e12
#: The most steps of a plan, the most gradient norms one by one, and the most schedules.
MAX_HORIZON: Final = 1_000_000
MAX_GRAD_NORMS: Final = 100_000
MAX_SCHEDULES: Final = 20

Positive = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]
Horizon = Annotated[int, Field(ge=2, le=MAX_HORIZON)]


class ScheduleFree(Spec):
    """No schedule: a constant rate, and the average x of all steps."""

    name: Literal["schedule_free"]


Candidate = Annotated[ScheduleSpec | ScheduleFree, Field(discriminator="name")]

#: What is ranked by default.
USUAL_SCHEDULES: Final[tuple[Candidate, ...]] = (
    ScheduleFree(name="schedule_free"),
    ConstantScheduleSpec(name="constant"),
    WSDScheduleSpec(name="wsd"),
    CosineScheduleSpec(name="cosine"),
    LinearScheduleSpec(name="linear"),
    OneMinusSqrtScheduleSpec(name="one_minus_sqrt"),
)


class TunedRate(Spec):
    """A base rate that was found to be the best for a schedule and a number of steps."""

    schedule: Candidate
    horizon: Horizon
    lr: Positive


class ExtendRun(Spec):
    """A run of ``from_steps`` steps that is to have ``to_steps``."""

    schedule: Candidate = WSDScheduleSpec(name="wsd")
    from_steps: Horizon
    to_steps: Horizon

    @field_validator("to_steps")
    @classmethod
    def _goes_on(cls, to_steps: int, info: ValidationInfo) -> int:
        start = info.data.get("from_steps")
        if start is not None and not start < to_steps <= MAX_EXTENSION * start:
            raise ValueError(
                f"expected more than {start} steps and at most {MAX_EXTENSION * start}, "
                f"saw {to_steps}"
            )
        return to_steps


class PlanRequest(Spec):
    """Which schedules to compare over how many steps, and what is known of the loss.

    Base rates scale with distance / grad_norm. ``tuned`` gives that ratio if the distance is not
    known: rates are then on the scale of the tuned run's.
    """

    horizon: Horizon
    schedules: tuple[Candidate, ...] = Field(
        USUAL_SCHEDULES, min_length=1, max_length=MAX_SCHEDULES
    )
    grad_norm: Positive | Annotated[tuple[Positive, ...], Field(max_length=MAX_GRAD_NORMS)] = Field(
        1.0, description="of all steps, or one for each of horizon steps"
    )
    distance: Positive | None = Field(None, description="start to optimum; null: from tuned, or 1")
    tuned: TunedRate | None = None
    extend: ExtendRun | None = None

    @model_validator(mode="after")
    def _norms_and_distance_are_told_once(self) -> Self:
        if self.tuned is not None and self.distance is not None:
            raise ValueError("expected distance or tuned, which tells one, saw both")
        if isinstance(self.grad_norm, tuple):
            self._check_norms(self.grad_norm)
        return self

    def _check_norms(self, norms: tuple[float, ...]) -> None:
        if len(norms) != self.horizon:
            raise ValueError(
                f"expected one grad_norm or {self.horizon}, one a step, saw {len(norms)}"
            )
        spans = [part for part in (self.tuned and self.tuned.horizon, self.extend) if part]
        if any(span != self.horizon for span in spans):
            raise ValueError(
                "expected one grad_norm for all steps beside extend or a tuned rate of another "
                f"horizon, saw {len(norms)}"
            )


class PlannedSchedule(Resource):
    """A schedule at its best base rate. ``relative_bound``: over the smallest one of the plan."""

    schedule: Candidate
    base_lr: Computed = Field(gt=0)
    bound: Computed = Field(gt=0)
    relative_bound: Computed = Field(ge=1)


class Plan(Resource):
    """Schedules over one horizon, the smallest bound first, and how to make a run longer."""

    object: Literal["plan"] = "plan"
    horizon: int
    grad_norm: Computed = Field(gt=0, description="root mean square over all steps")
    distance: Computed = Field(gt=0)
    distance_source: Literal["given", "tuned", "unit"]
    ranking: list[PlannedSchedule]
    extension: Extension | None
