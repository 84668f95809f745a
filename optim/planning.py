"""Rates, cooldowns and extensions that the bound prefers, as plans that a service can return.

Built on `optim/schedules/schedules.py` and `optim/theory/bounds.py`; numpy only. The distance D and
the gradient norms G are rarely known. Ratios of rates need neither: `transfer_base` converts a rate
tuned for one schedule and horizon to another, and `implied_distance` finds the D, in units of G,
for which a tuned rate is the best.

Source: Schaipp et al., arXiv 2501.18965.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from roadless.optim.checks import require_above_zero
from roadless.optim.schedules.parts import DecayType
from roadless.optim.schedules.schedules import SCHEDULES, ScheduleBase, whole_steps
from roadless.optim.theory.bounds import Kind, bound, optimal_base
from roadless.optim.theory.rows import Floats, checked_norms, require_whole_number

#: Shares of the steps that `best_cooldown` tries; the bound resolves no finer than a hundredth.
COOLDOWN_FRACTIONS: tuple[float, ...] = tuple(n / 100 for n in range(1, 101))
#: What the paper tries for an extension: cooldown fractions, and factors of the second stage.
EXTENSION_FRACTIONS: tuple[float, ...] = tuple(np.linspace(0.1, 1, 33).round(6).tolist())
EXTENSION_FACTORS: tuple[float, ...] = tuple(np.linspace(0.2, 1, 33).round(6).tolist())


@dataclass(frozen=True, slots=True)
class Family:
    """A schedule without its length and base rate.

    >>> Family("wsd", {"cooldown_len": 0.5}).at(4, base_lr=0.1).schedule
    array([0.1 , 0.1 , 0.1 , 0.05, 0.  ])
    """

    #: A key of `roadless.optim.schedules.schedules.SCHEDULES`.
    name: str
    #: Arguments of the schedule's class besides ``steps`` and ``base_lr``.
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def at(self, horizon: int, *, base_lr: float = 1.0) -> ScheduleBase:
        """Return the schedule of a job of ``horizon`` (>= 1) steps: one rate more than that.

        Raises:
            ValueError: no such schedule, or one of its arguments is unknown or out of range.
        """
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule: expected {', '.join(SCHEDULES)}, seen {self.name!r}")
        steps = require_whole_number("horizon", horizon, least=1) + 1
        try:
            return SCHEDULES[self.name](steps=steps, base_lr=base_lr, **self.arguments)
        except TypeError as error:
            raise ValueError(f"arguments of {self.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the planner assumes about the loss."""

    #: G_t >= 0: one for all steps, or one per step, at least up to the longest horizon.
    grad_norms: ArrayLike = 1.0
    #: Distance from start to optimum, > 0.
    D: float = 1.0
    #: "refined": the last iterate counts; "standard": the best or average one.
    kind: Kind = "refined"

    def norms_until(self, horizon: int) -> Floats:
        """Return one gradient norm for each of the first ``horizon`` steps.

        Raises:
            ValueError: there are fewer.
        """
        norms = np.asarray(self.grad_norms, dtype=np.float64)
        return checked_norms(norms[:horizon] if norms.ndim else norms, num_steps=horizon)


#: All norms and the distance are 1: enough where only ratios matter.
UNIT = Assumptions()


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule for a horizon, and what the bound says about it."""

    family: Family
    #: Steps of the job.
    horizon: int
    base_lr: float
    #: The bound after the horizon at ``base_lr``.
    bound: float
    #: The base rate with the smallest bound under this schedule, and that bound.
    best_base_lr: float
    best_bound: float
    #: Number of leading steps with the same rates as the extended run: start there or before.
    shared_steps: int = 0

    @property
    def schedule(self) -> ScheduleBase:
        """The schedule, one rate longer than the horizon."""
        return self.family.at(self.horizon, base_lr=self.base_lr)

    @property
    def rates(self) -> Floats:
        """The rates of the job's steps."""
        return self.schedule.schedule[: self.horizon]


@dataclass(frozen=True, slots=True)
class CooldownCurve:
    """The bound for each length of the cooldown."""

    #: Shares of the steps, increasing.
    fractions: tuple[float, ...]
    plans: tuple[Plan, ...]

    @property
    def bounds(self) -> Floats:
        """The bounds, one per fraction."""
        return np.array([plan.bound for plan in self.plans])

    def best(self, *, slack: float = 0.0) -> Plan:
        """Return the plan with the shortest cooldown that is within ``slack`` of the best.

        Args:
            slack: relative, >= 0; the curve is flat at its end, so that 0.01 often saves a third of
                the cooldown, and the horizon can be decided that much later.
        """
        near = self.bounds <= self.bounds.min() * (1 + slack)
        return self.plans[int(np.argmax(near))]


def plan_at(family: Family, *, horizon: int, base_lr: float, assuming: Assumptions = UNIT) -> Plan:
    """Evaluate the bound for a schedule at a base rate.

    Args:
        family: the schedule.
        horizon: steps of the job, >= 1.
        base_lr: the base rate, > 0.
        assuming: about the loss.

    Raises:
        ValueError: bad input, or there is no bound, as the last rate is 0.

    >>> wsd = Family("wsd", {"cooldown_len": 0.2})
    >>> round(plan_at(wsd, horizon=400, base_lr=0.05, assuming=Assumptions(D=2.0)).bound, 5)
    0.21867
    """
    require_above_zero({"base_lr": base_lr}, "base_lr")
    best_base_lr, best_bound = _best(family, horizon=horizon, assuming=assuming)
    return Plan(
        family=family,
        horizon=horizon,
        base_lr=float(base_lr),
        bound=_bound_at(family, horizon=horizon, base_lr=base_lr, assuming=assuming),
        best_base_lr=best_base_lr,
        best_bound=best_bound,
    )


def best_base(family: Family, *, horizon: int, assuming: Assumptions = UNIT) -> Plan:
    """Choose the base rate with the smallest bound; arguments and errors as `plan_at`.

    >>> print(f"{best_base(Family('cosine'), horizon=400).base_lr:.6f}")
    0.048242
    """
    gamma, _ = _best(family, horizon=horizon, assuming=assuming)
    return plan_at(family, horizon=horizon, base_lr=gamma, assuming=assuming)


def transfer_base(
    base_lr: float,
    *,
    source: Family,
    source_horizon: int,
    target: Family,
    target_horizon: int,
    assuming: Assumptions = UNIT,
) -> float:
    """Convert a base rate tuned for one schedule and horizon to another.

    gamma*(target) / gamma*(source) times the rate; D does not matter, nor does a constant G.

    Args:
        base_lr: the tuned rate, > 0.
        source: the schedule that it was tuned for.
        source_horizon: steps that it was tuned for, >= 1.
        target: the schedule to convert it to.
        target_horizon: steps of the target, >= 1.
        assuming: about the loss.

    Raises:
        ValueError: bad input, or there is no bound at one of the horizons.

    >>> wsd, linear = Family("wsd", {"cooldown_len": 0.2}), Family("linear")
    >>> lr = transfer_base(
    ...     0.001, source=wsd, source_horizon=50_000, target=linear, target_horizon=50_000
    ... )
    >>> round(lr, 5)
    0.00194
    """
    require_above_zero({"base_lr": base_lr}, "base_lr")
    at_source, _ = _best(source, horizon=source_horizon, assuming=assuming)
    at_target, _ = _best(target, horizon=target_horizon, assuming=assuming)
    return base_lr * at_target / at_source


def implied_distance(
    family: Family, *, horizon: int, base_lr: float, assuming: Assumptions = UNIT
) -> float:
    """Return the distance D for which a tuned rate is the best; the assumed D does not matter.

    Args:
        family: the schedule that the rate was tuned for.
        horizon: steps that it was tuned for, >= 1.
        base_lr: the tuned rate, > 0.
        assuming: about the loss; D comes in the units of its gradient norms.

    Raises:
        ValueError: bad input, or there is no bound.
    """
    require_above_zero({"base_lr": base_lr}, "base_lr")
    gamma, _ = _best(family, horizon=horizon, assuming=replace(assuming, D=1.0))
    return base_lr / gamma


def cooldown_curve(
    *,
    horizon: int,
    decay_type: DecayType = "linear",
    base_lr: float | None = None,
    fractions: Sequence[float] = COOLDOWN_FRACTIONS,
    assuming: Assumptions = UNIT,
) -> CooldownCurve:
    """Try cooldowns of many lengths after a constant rate.

    Args:
        horizon: steps of the job, >= 1.
        decay_type: shape of the cooldown.
        base_lr: the constant rate, > 0; None takes the best for each length.
        fractions: shares of the steps in (0, 1], increasing.
        assuming: about the loss.

    Raises:
        ValueError: bad input.
    """
    if not fractions or list(fractions) != sorted(fractions) or not fractions[0] > 0:
        raise ValueError(f"fractions: expected rising shares in (0, 1], seen {tuple(fractions)}")
    families = [Family("wsd", {"cooldown_len": c, "decay_type": decay_type}) for c in fractions]
    if base_lr is None:
        plans = [best_base(one, horizon=horizon, assuming=assuming) for one in families]
    else:
        plans = [
            plan_at(one, horizon=horizon, base_lr=base_lr, assuming=assuming) for one in families
        ]
    return CooldownCurve(fractions=tuple(fractions), plans=tuple(plans))


def best_cooldown(
    *,
    horizon: int,
    decay_type: DecayType = "linear",
    base_lr: float | None = None,
    slack: float = 0.0,
    assuming: Assumptions = UNIT,
) -> Plan:
    """Choose the length of the cooldown; arguments and errors as `cooldown_curve` and its `best`.

    >>> plan = best_cooldown(horizon=400, slack=0.01)
    >>> plan.family.arguments["cooldown_len"]
    0.59
    """
    curve = cooldown_curve(
        horizon=horizon, decay_type=decay_type, base_lr=base_lr, assuming=assuming
    )
    return curve.best(slack=slack)


def extend_by_cooldown(
    family: Family,
    *,
    finished: int,
    horizon: int,
    fractions: Sequence[float] = EXTENSION_FRACTIONS,
    assuming: Assumptions = UNIT,
) -> Plan:
    """Extend a finished run at its base rate, with a longer cooldown.

    The rate is assumed to be the best for the finished run; of the fractions tried, the one whose
    best base rate is nearest to it is taken. It may require a start before the old cooldown: see
    ``Plan.shared_steps``.

    Args:
        family: the finished run's, with a ``cooldown_len``: "wsd", "sqrt", "polynomial-cooldown".
        finished: steps of the finished run, >= 1.
        horizon: steps of the longer one, > finished.
        fractions: cooldowns to try, shares of the longer run in (0, 1]; those that leave no room
            for the warmup are skipped.
        assuming: about the loss; D sets the base rate (`implied_distance`), not the fraction.

    Raises:
        ValueError: bad input, or there is no bound.

    >>> wsd = Family("wsd", {"cooldown_len": 0.2})
    >>> extend_by_cooldown(wsd, finished=4000, horizon=6000).family.arguments
    {'cooldown_len': 0.4375}
    """
    if "cooldown_len" not in family.arguments:
        raise ValueError(f"arguments: expected a cooldown_len, seen {dict(family.arguments)}")

    room = horizon + 1 - family.at(finished).warmup_steps

    def with_fraction(c: float) -> Family:
        return replace(family, arguments={**family.arguments, "cooldown_len": c})

    return _extended(
        family,
        finished=finished,
        horizon=horizon,
        trials=[with_fraction(c) for c in fractions if whole_steps(c, horizon + 1) <= room],
        assuming=assuming,
    )


def extend_by_factor(
    family: Family,
    *,
    finished: int,
    horizon: int,
    factors: Sequence[float] = EXTENSION_FACTORS,
    assuming: Assumptions = UNIT,
) -> Plan:
    """Extend a finished run with a second stage at a lower rate, and an equal cooldown share.

    The second stage begins where the old cooldown did, so that any run with a training state from
    then can resume. Of the factors tried, the one whose best base rate is nearest to the finished
    run's is taken.

    Args:
        family: the finished run's, "wsd" with a ``cooldown_len``.
        finished: steps of the finished run, >= 1.
        horizon: steps of the longer one, > finished.
        factors: second-stage rates to try, shares of the base rate, > 0.
        assuming: about the loss; D sets the base rate (`implied_distance`), not the factor.

    Raises:
        ValueError: bad input, or there is no bound.

    >>> wsd = Family("wsd", {"cooldown_len": 0.2})
    >>> plan = extend_by_factor(wsd, finished=4000, horizon=6000)
    >>> plan.family.arguments["factors"], plan.shared_steps
    ([0.625], 3201)
    """
    if family.name != "wsd" or "cooldown_len" not in family.arguments:
        raise ValueError(f"family: expected wsd with a cooldown_len, seen {family}")
    old = family.at(finished)
    cooldown = {
        "steps": whole_steps(family.arguments["cooldown_len"], horizon + 1),
        "type": family.arguments.get("decay_type", "linear"),
        "final_lr": family.arguments.get("final_lr", 0.0),
    }

    def with_factor(rho: float) -> Family:
        arguments = {
            "milestones": [old.cooldown_start],
            "factors": [rho],
            "cooldown_kwargs": cooldown,
            "warmup_kwargs": family.arguments.get("warmup_kwargs"),
        }
        return Family("piecewise-constant", arguments)

    return _extended(
        family,
        finished=finished,
        horizon=horizon,
        trials=[with_factor(rho) for rho in factors],
        assuming=assuming,
    )


def _extended(
    family: Family,
    *,
    finished: int,
    horizon: int,
    trials: Sequence[Family],
    assuming: Assumptions,
) -> Plan:
    """Return the trial whose best base rate is nearest to that of the finished run."""
    if horizon <= finished:
        raise ValueError(f"horizon: expected more than the {finished} finished, seen {horizon}")
    if not trials:
        raise ValueError("trials: expected fractions or factors that fit, seen none")
    gamma, _ = _best(family, horizon=finished, assuming=assuming)
    found = [_best(trial, horizon=horizon, assuming=assuming)[0] for trial in trials]
    chosen = trials[int(np.argmin(np.abs(np.array(found) - gamma)))]
    plan = plan_at(chosen, horizon=horizon, base_lr=gamma, assuming=assuming)
    old = family.at(finished, base_lr=gamma).schedule[:finished]
    return replace(plan, shared_steps=_num_equal(old, plan.rates))


def _num_equal(old: Floats, new: Floats) -> int:
    """Return how many leading rates are equal."""
    differs = old != new[: len(old)]
    return int(np.argmax(differs)) if differs.any() else len(old)


def _best(family: Family, *, horizon: int, assuming: Assumptions) -> tuple[float, float]:
    """Return the best base rate and its bound."""
    shape = family.at(horizon).shape[:horizon]
    norms = assuming.norms_until(horizon)
    return optimal_base(shape, norms, D=assuming.D, kind=assuming.kind)


def _bound_at(family: Family, *, horizon: int, base_lr: float, assuming: Assumptions) -> float:
    rates = family.at(horizon, base_lr=base_lr).schedule[:horizon]
    return bound(rates, assuming.norms_until(horizon), D=assuming.D, kind=assuming.kind)
