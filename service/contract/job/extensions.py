"""How a schedule with a horizon continues when its job is given more steps than it was made for.

Schedule-free jobs, and schedules whose rates do not depend on the number of steps, need none of it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from roadless.service.contract.base import Spec
from roadless.service.contract.job.schedules import (
    MAX_STEPS,
    ScheduleSpec,
    StepsOf,
    check_parts,
    cut_steps,
    has_cooldown_length,
    has_horizon,
)


class CooldownPlan(Spec):
    """The same schedule over the new number of steps, with a cooldown of this length."""

    kind: Literal["cooldown"]
    cooldown_len: float = Field(
        gt=0, le=1, description="fraction of all steps, old and new, used for the cooldown"
    )


class SecondStagePlan(Spec):
    """``factor`` times the rates of the same schedule over the new number of steps.

    It begins where the old cooldown would, or at the job's current step if that is later.
    """

    kind: Literal["second_stage"]
    factor: float = Field(gt=0, le=1)


class KeepLastRatePlan(Spec):
    """The old schedule to its end, and then its last rate."""

    kind: Literal["keep_last_rate"]


ExtensionPlan = Annotated[
    CooldownPlan | SecondStagePlan | KeepLastRatePlan, Field(discriminator="kind")
]


class ScheduleExtension(Spec):
    """One extension of a schedule with a horizon; written by the service."""

    from_step: int = Field(ge=0, le=MAX_STEPS, description="rates up to this step are as before")
    horizon: int = Field(ge=1, le=MAX_STEPS, description="budget.max_steps until then")
    plan: ExtensionPlan


def with_new_horizons(
    extensions: Sequence[ScheduleExtension], *, max_steps: int
) -> Iterator[tuple[ScheduleExtension, int]]:
    """Each extension with the number of steps that it led to; the last led to ``max_steps``."""
    horizons = [*(extension.horizon for extension in extensions), max_steps]
    return zip(extensions, horizons[1:], strict=True)


def check_extensions(
    extensions: Sequence[ScheduleExtension], *, schedule: ScheduleSpec | None, max_steps: int | None
) -> None:
    """Raise ValueError unless the extensions follow each other and suit the schedule."""
    if not extensions:
        return
    if schedule is None or max_steps is None or not has_horizon(schedule):
        raise ValueError("expected a schedule with a horizon, which alone is extended, saw none")
    for (before, _), (after, _) in pairwise(with_new_horizons(extensions, max_steps=max_steps)):
        if before.from_step > after.from_step:
            raise ValueError(
                f"expected extensions in order, saw {after.from_step} after {before.from_step}"
            )
    for extension, horizon in with_new_horizons(extensions, max_steps=max_steps):
        _check_horizons(extension, horizon)
        if isinstance(extension.plan, CooldownPlan):
            _require_cooldown_length(schedule)
    check_cooldowns(extensions, schedule=schedule, max_steps=max_steps, steps_of=cut_steps)


def check_cooldowns(
    extensions: Sequence[ScheduleExtension],
    *,
    schedule: ScheduleSpec,
    max_steps: int,
    steps_of: StepsOf,
) -> None:
    """Raise ValueError unless the cooldown of each extension fits within the steps after it."""
    for extension, num_steps in with_new_horizons(extensions, max_steps=max_steps):
        if isinstance(plan := extension.plan, CooldownPlan):
            check_parts(schedule, plan.cooldown_len, num_steps=num_steps, steps_of=steps_of)


def _check_horizons(extension: ScheduleExtension, horizon: int) -> None:
    if not extension.from_step <= extension.horizon < horizon:
        raise ValueError(
            "expected from_step <= horizon < the number of steps after it, saw "
            f"{extension.from_step}, {extension.horizon} and {horizon}"
        )


def _require_cooldown_length(schedule: ScheduleSpec) -> None:
    if not has_cooldown_length(schedule):
        raise ValueError(
            f"expected the plan second_stage or keep_last_rate for {schedule.name!r}, whose "
            "cooldown has no length of its own, saw cooldown"
        )
