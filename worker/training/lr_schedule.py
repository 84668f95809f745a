"""The learning rate of each step of a job with a schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadless.optim.schedules.by_name import named_schedule, rates
from roadless.service.contract.job.extensions import (
    CooldownPlan,
    KeepLastRatePlan,
    ScheduleExtension,
    SecondStagePlan,
    with_new_horizons,
)
from roadless.service.contract.job.optimizers import ScheduleFreeWrapperSpec
from roadless.service.contract.job.schedules import ScheduleSpec, has_cooldown_length, has_horizon
from roadless.service.contract.job.spec import JobSpec

#: Rates computed at first for a schedule without a horizon; doubled as often as needed.
_FIRST_STEPS = 1024

_Floats = NDArray[np.float64]


class LrSchedule:
    """Learning rates by step; a function of the specification alone, so nothing is saved."""

    def __init__(self, first: _Floats, *, longer: Callable[[int], _Floats] | None) -> None:
        """``first``: rates of the first steps. ``longer``: computes more; None: the rates end.

        Past the end, where a job continues only by an extension's plan, the last rate stays.
        """
        self._rates = first
        self._longer = longer

    def after(self, step: int) -> float:
        """The rate of the step that follows ``step`` completed ones."""
        while step >= self._rates.size and self._longer:
            self._rates = self._longer(2 * self._rates.size)
        return float(self._rates[min(step, self._rates.size - 1)])


@dataclass(frozen=True)
class _Curve:
    """A schedule, and its rates by step, with those of the schedules before it."""

    schedule: ScheduleSpec
    base_lr: float
    rates: _Floats

    def over(self, steps: int) -> _Floats:
        """The rates of this schedule over that many steps."""
        return rates(self.schedule.name, steps=steps, base_lr=self.base_lr, **self._arguments)

    def extended(self, step: tuple[ScheduleExtension, int]) -> "_Curve":
        """The curve over more steps, unchanged up to where the extension was made."""
        extension, steps = step
        match extension.plan:
            case CooldownPlan(cooldown_len=cooldown_len):
                schedule = self.schedule.model_copy(update={"cooldown_len": cooldown_len})
                return replace(self, schedule=schedule)._going_on(extension.from_step, steps)
            case SecondStagePlan(factor=factor):
                start = max(extension.from_step, self._cooldown_start)
                return replace(self, base_lr=factor * self.base_lr)._going_on(start, steps)
            case KeepLastRatePlan():
                kept = np.full(steps - self.rates.size, self.rates[-1])
                return replace(self, rates=np.concatenate((self.rates, kept)))

    def _going_on(self, start: int, steps: int) -> "_Curve":
        return replace(self, rates=np.concatenate((self.rates[:start], self.over(steps)[start:])))

    @property
    def _arguments(self) -> dict[str, Any]:
        return self.schedule.model_dump(exclude={"name"})

    @property
    def _cooldown_start(self) -> int:
        """How many steps precede the cooldown; 0 if the whole schedule is one."""
        if not has_cooldown_length(self.schedule):
            return 0
        steps = self.rates.size
        return named_schedule(self.schedule.name, steps=steps, **self._arguments).cooldown_start


def build_lr_schedule(spec: JobSpec) -> LrSchedule | None:
    """Return the rates of a job; None without a schedule.

    Raises ValueError when the schedule's parts do not fit into the number of steps.
    """
    if spec.schedule is None:
        return None
    curve = _Curve(spec.schedule, _base_lr(spec), np.empty(0))
    if not has_horizon(spec.schedule):
        return LrSchedule(curve.over(_FIRST_STEPS), longer=curve.over)
    assert spec.budget is not None
    assert spec.budget.max_steps is not None
    return LrSchedule(
        _extended(curve, spec.schedule_extensions, spec.budget.max_steps), longer=None
    )


def _extended(curve: _Curve, extensions: Sequence[ScheduleExtension], max_steps: int) -> _Floats:
    """The rates of a schedule with a horizon, with its extensions applied."""
    first = extensions[0].horizon if extensions else max_steps
    began = replace(curve, rates=curve.over(first))
    return reduce(_Curve.extended, with_new_horizons(extensions, max_steps=max_steps), began).rates


def _base_lr(spec: JobSpec) -> float:
    optimizer = spec.optimizer
    base = optimizer.base if isinstance(optimizer, ScheduleFreeWrapperSpec) else optimizer
    return base.lr
