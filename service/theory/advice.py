"""How a job should continue beyond its steps: ways, and what each promises. Pure.

Schedule-free jobs and constant rates can continue as they are. A schedule that was made for a
number of steps is adapted at the job's rate: by a longer cooldown, or a second stage at a lower
rate before it. For comparison there are doing neither, and the best that a new run could do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from roadless.optim.planning import Assumptions, Family, Plan, extend_by_cooldown, extend_by_factor
from roadless.optim.schedules.by_name import rates
from roadless.service.contract.job.schedules import (
    PolynomialCooldownScheduleSpec,
    ScheduleSpec,
    SqrtScheduleSpec,
    WSDScheduleSpec,
    has_horizon,
)
from roadless.service.contract.theory.analysis import MAX_EXTENSION, WayName
from roadless.service.theory.analysis import best_factor
from roadless.service.theory.averaging import Averaging
from roadless.service.theory.bounds import Terms, terms_at
from roadless.service.theory.steps import MAX_BLOCKS, Blocks, Floats, Ints

#: Further steps are assumed to have the gradient norms of this last share of those taken.
RECENT_SHARE = 0.1
#: The most blocks that an extension is summed in.
MAX_EXTENSION_BLOCKS = MAX_EXTENSION * MAX_BLOCKS
#: A longer extension is planned to scale, over this many steps.
MAX_PLANNED_STEPS = 20_000
#: Lengths of a cooldown that are tried after a constant rate.
NUM_COOLDOWNS = 16


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to continue: the steps up to its end, and what they promise there.

    ``starts_at``: the last step that it shares with the job; 0: a new run.
    """

    name: WayName
    blocks: Blocks
    averaging: Averaging | None
    base_lr: float
    bound: float
    starts_at: int
    cooldown_len: float | None = None
    factor: float | None = None

    def terms(self, horizons: Ints) -> Terms:
        """Return the terms of its bound on the way."""
        return terms_at(self.blocks, horizons, averaging=self.averaging)


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A run that is to have ``to_step`` steps.

    Args:
        blocks: its steps so far, at least one.
        averaging: how its optimizer averages; None: the last iterate counts.
        schedule: its schedule; None for a constant rate.
        made_for: for how many steps the schedule was made.
        to_step: more than there are, and more than ``made_for``.
        grad_norm: that of the further steps.
        distance: D.
    """

    blocks: Blocks
    averaging: Averaging | None
    schedule: ScheduleSpec | None
    made_for: int
    to_step: int
    grad_norm: float
    distance: float

    def ways(self) -> list[Way]:
        """Return all ways, the smallest bound first."""
        return sorted(self._ways(), key=_bound_or_infinity)

    def _ways(self) -> Iterator[Way]:
        yield self._tuned()
        if self.schedule is None or not has_horizon(self.schedule):
            yield self._way("go_on", self._going_on, starts_at=self.blocks.num_steps)
            if self.averaging is None:
                yield self._best_cooldown()
            return
        yield self._stretched(self.schedule)
        if isinstance(self.schedule, WSDScheduleSpec):
            yield from self._bent(self.schedule)

    # ---- the steps ahead -------------------------------------------------------------------------

    @cached_property
    def _so_far(self) -> Blocks:
        num_blocks = -(-self.to_step // self.blocks.size)
        return self.blocks.coarser(-(-num_blocks // MAX_EXTENSION_BLOCKS))

    @cached_property
    def _ahead(self) -> Blocks:
        """All steps with their norms; no rates ahead yet."""
        nothing = np.zeros(-(-self.to_step // self._so_far.size))
        return self._so_far.going_on(self.to_step, eta=nothing, grad_norm=self.grad_norm)

    @cached_property
    def _rates_so_far(self) -> Floats:
        return self._so_far.eta / self._so_far.lengths

    @property
    def _largest_rate(self) -> float:
        return float(self._rates_so_far.max())

    @cached_property
    def _num_planned(self) -> int:
        return min(self.to_step, MAX_PLANNED_STEPS)

    def _to_scale(self, num_steps: int) -> int:
        return max(1, round(num_steps * self._num_planned / self.to_step))

    def _shared(self, num_planned: int) -> int:
        """Return how many steps those planned stand for; of the last one, none may be shared."""
        if self._num_planned == self.to_step:
            return num_planned
        return max(num_planned - 1, 0) * self.to_step // self._num_planned

    def _spread(self, planned: Floats) -> Floats:
        """Return a rate for each block from those of the planned steps."""
        num_blocks = self._ahead.eta.size
        return planned[((np.arange(num_blocks) + 0.5) * planned.size / num_blocks).astype(np.int64)]

    @cached_property
    def _planned_norms(self) -> Floats:
        norms = np.sqrt(self._ahead.norm_square / self._ahead.lengths)
        place = (np.arange(self._num_planned) + 0.5) * norms.size / self._num_planned
        return np.asarray(norms[place.astype(np.int64)])

    # ---- the ways --------------------------------------------------------------------------------

    @property
    def _going_on(self) -> Floats:
        """The rates so far, and the last of them from then on."""
        so_far = self._rates_so_far
        more = self._ahead.eta.size - so_far.size
        return np.concatenate([so_far, np.full(more, so_far[-1])])

    def _way(self, name: WayName, eta: Floats, *, starts_at: int, **facts: Any) -> Way:
        """Return the way of these rates; up to ``starts_at`` they are those of the job."""
        shared = min(starts_at, self.blocks.num_steps)
        whole = -(-shared // self._so_far.size)
        eta = np.concatenate([self._rates_so_far[:whole], eta[whole:]])
        blocks = self._ahead.at_rates(eta)
        terms = terms_at(blocks, [self.to_step], averaging=self.averaging)
        facts = {"base_lr": self._largest_rate} | facts
        return Way(
            name=name,
            blocks=blocks,
            averaging=self.averaging,
            bound=float(terms.at(self.distance)[0]),
            starts_at=shared,
            **facts,
        )

    def _tuned(self) -> Way:
        """A new run at the best rate: linear decay, or a constant rate where that is averaged."""
        name = "linear" if self.averaging is None else "constant"
        shape = self._spread(rates(name, steps=self._num_planned))
        terms = terms_at(self._ahead.at_rates(shape), [self.to_step], averaging=self.averaging)
        base_lr = best_factor(terms, distance=self.distance)
        if base_lr is None:
            raise ValueError(f"expected a bound of a new run at step {self.to_step}, saw none")
        return self._way("tuned", base_lr * shape, starts_at=0, base_lr=base_lr)

    def _best_cooldown(self) -> Way:
        """A cooldown from the job's rate; the best one that keeps the steps taken."""
        longest = 1 - self.blocks.num_steps / self.to_step
        lengths = longest * np.arange(1, NUM_COOLDOWNS + 1) / NUM_COOLDOWNS
        found = [self._cooled(float(length)) for length in lengths]
        return min(found, key=_bound_or_infinity)

    def _cooled(self, cooldown_len: float) -> Way:
        shape = rates("wsd", steps=self._num_planned, cooldown_len=cooldown_len)
        eta = self._going_on * self._spread(shape)
        starts_at = self.blocks.num_steps
        return self._way("cooldown", eta, starts_at=starts_at, cooldown_len=cooldown_len)

    def _stretched(self, schedule: ScheduleSpec) -> Way:
        """The same schedule as if it had been made for all the steps."""
        arguments = schedule.model_dump(exclude={"name"})
        arguments["warmup_steps"] = self._to_scale_or_none(schedule.warmup_steps)
        shape = rates(schedule.name, steps=self._num_planned, **arguments)
        eta = self._largest_rate * self._to_its_scale(schedule) * self._spread(shape)
        return self._way("stretch", eta, starts_at=self._shared_by_stretching(schedule))

    def _to_scale_or_none(self, num_steps: int) -> int:
        return self._to_scale(num_steps) if num_steps else 0

    def _to_its_scale(self, schedule: ScheduleSpec) -> float:
        """Return the factor that turns powers of a planned step into those of a step."""
        longer = self.to_step / self._num_planned
        match schedule:
            case SqrtScheduleSpec():
                return float(longer**-0.5)
            case PolynomialCooldownScheduleSpec():
                return float(longer**-schedule.alpha)
            case _:
                return 1.0

    def _shared_by_stretching(self, schedule: ScheduleSpec) -> int:
        """A schedule depends on its end only from its cooldown on; without one, from the start."""
        cooldown_len = getattr(schedule, "cooldown_len", 1.0)
        return self.made_for - int(cooldown_len * self.made_for)

    def _bent(self, schedule: WSDScheduleSpec) -> Iterator[Way]:
        """The planner's two ways to keep the rate."""
        family = Family("wsd", self._arguments(schedule))
        finished, horizon = self._to_scale(self.made_for), self._num_planned
        assuming = Assumptions(grad_norms=self._planned_norms)
        plan = extend_by_cooldown(family, finished=finished, horizon=horizon, assuming=assuming)
        yield self._planned("cooldown", plan, cooldown_len=plan.family.arguments["cooldown_len"])
        plan = extend_by_factor(family, finished=finished, horizon=horizon, assuming=assuming)
        factor = plan.family.arguments["factors"][0]
        yield self._planned("second_stage", plan, cooldown_len=schedule.cooldown_len, factor=factor)

    def _arguments(self, schedule: WSDScheduleSpec) -> dict[str, Any]:
        arguments = schedule.model_dump(include={"cooldown_len", "decay_type", "final_lr"})
        if schedule.warmup_steps:
            arguments["warmup_kwargs"] = {
                "steps": self._to_scale(schedule.warmup_steps),
                "warmup_lr": schedule.warmup_lr,
            }
        return arguments

    def _planned(self, name: WayName, plan: Plan, **facts: Any) -> Way:
        eta = self._largest_rate * self._spread(plan.rates / plan.base_lr)
        # The first step has the same rate in all of them: sharing no more is sharing nothing.
        shared = plan.shared_steps if plan.shared_steps > 1 else 0
        return self._way(name, eta, starts_at=self._shared(shared), **facts)


def _bound_or_infinity(way: Way) -> float:
    return way.bound if np.isfinite(way.bound) else np.inf


def advice(way: Way | None) -> str:
    """Return a sentence on how to continue; None: there is no way but a new run."""
    if way is None:
        return "The schedule depends on its end from the first step: start over."
    share = None if way.cooldown_len is None else f"{100 * way.cooldown_len:.4g} %"
    match way.name:
        case "go_on":
            return "Nothing needs to be redone: continue at the current rate."
        case "cooldown":
            return (
                f"Keep the rate, with a cooldown over the last {share} of all steps; resume from "
                f"a training state at step {way.starts_at} or earlier."
            )
        case "second_stage":
            return (
                f"Resume from a training state at step {way.starts_at} or earlier, after that step "
                f"at {way.factor:.4g} of the rate; the cooldown keeps {share} of all steps."
            )
        case _:
            return (
                "Stretch the schedule; resume from a training state at step "
                f"{way.starts_at} or earlier."
            )
