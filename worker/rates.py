"""The learning rate of each step of a job with a schedule."""

import numpy as np
from numpy.typing import NDArray

from optim.named_schedules import rates
from service.contract.optimizers import ScheduleFreeWrapperSpec
from service.contract.schedules import ScheduleSpec
from service.contract.spec import JobSpec

#: Rates that are made at once for a job without a number of steps; doubled as often as needed.
_FIRST_STEPS = 1024


class Rates:
    """Rates by step; a function of the specification alone, so that nothing needs to be saved."""

    def __init__(self, spec: ScheduleSpec, *, base_lr: float, max_steps: int | None) -> None:
        """``base_lr``: the optimizer's own. ``max_steps``: the horizon, or None without one.

        Raises ValueError when the schedule's parts do not fit into ``max_steps``.
        """
        self._spec = spec
        self._base_lr = base_lr
        self._has_end = max_steps is not None
        self._rates = self._made(max_steps or _FIRST_STEPS)

    def after(self, step: int) -> float:
        """The rate of the step that follows ``step`` completed ones.

        Past the horizon, where a job goes on only by a plan of its own, the last one.
        """
        while step >= self._rates.size and not self._has_end:
            self._rates = self._made(2 * self._rates.size)
        return float(self._rates[min(step, self._rates.size - 1)])

    def _made(self, steps: int) -> NDArray[np.float64]:
        arguments = self._spec.model_dump(exclude={"name"})
        return rates(self._spec.name, steps=steps, base_lr=self._base_lr, **arguments)


def build_rates(spec: JobSpec) -> Rates | None:
    """Return the rates of a job; None without a schedule. Raises ValueError as ``Rates`` does."""
    if spec.schedule is None:
        return None
    optimizer = spec.optimizer
    base = optimizer.base if isinstance(optimizer, ScheduleFreeWrapperSpec) else optimizer
    max_steps = spec.budget.max_steps if spec.budget else None
    return Rates(spec.schedule, base_lr=base.lr, max_steps=max_steps)
