"""Plans without a job: the best base rates, a ranking, and how to make a run longer. Pure."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from roadless.optim.schedules.by_name import rates
from roadless.optim.theory.bounds import BoundTerms, split_bound, split_schedule_free_bound
from roadless.service.contract.job.schedules import has_horizon
from roadless.service.contract.theory.analysis import Extension as ExtensionResource
from roadless.service.contract.theory.plan import (
    Candidate,
    ExtendRun,
    Plan,
    PlannedSchedule,
    PlanRequest,
    ScheduleFree,
)
from roadless.service.errors import Invalid
from roadless.service.theory.advice import Extension
from roadless.service.theory.arithmetic import within_doubles
from roadless.service.theory.averaging import Averaging
from roadless.service.theory.steps import Floats, Steps, blocks_of
from roadless.service.theory.views import extension_resource

#: Equal weights, as schedule-free has them at a constant rate.
EQUAL_WEIGHTS = Averaging(r=0.0, power=2.0)


@dataclass(frozen=True)
class _Loss:
    """What is known of the loss."""

    grad_norm: float | Floats
    distance: float
    source: Literal["given", "tuned", "unit"]


@dataclass(frozen=True)
class _Best:
    """A schedule's best base rate, and the bound there."""

    base_lr: float
    bound: float


def plan_of(request: PlanRequest) -> Plan:
    """Return the plan.

    Raises:
        Invalid: a schedule's parts do not fit into its steps, it has no bound, or one that is not
            within double precision.
    """
    with within_doubles(partial(Invalid.at, "")):
        return _plan_of(request)


def _plan_of(request: PlanRequest) -> Plan:
    norms = np.asarray(request.grad_norm, np.float64)
    loss = _loss(request, norms)
    return Plan(
        horizon=request.horizon,
        grad_norm=float(np.sqrt(np.mean(norms**2))),
        distance=loss.distance,
        distance_source=loss.source,
        ranking=_ranking(request, loss),
        extension=None if request.extend is None else _extension(request.extend, loss),
    )


def _loss(request: PlanRequest, norms: Floats) -> _Loss:
    if request.tuned is not None:
        tuned = request.tuned
        best = _best(tuned.schedule, tuned.horizon, _Loss(norms, 1.0, "tuned"), "/tuned/schedule")
        return _Loss(norms, tuned.lr / best.base_lr, "tuned")
    if request.distance is not None:
        return _Loss(norms, request.distance, "given")
    return _Loss(norms, 1.0, "unit")


def _ranking(request: PlanRequest, loss: _Loss) -> list[PlannedSchedule]:
    found = [
        (schedule, _best(schedule, request.horizon, loss, f"/schedules/{i}"))
        for i, schedule in enumerate(request.schedules)
    ]
    least = min(best.bound for _, best in found)
    ranked = sorted(found, key=lambda one: one[1].bound)
    return [
        PlannedSchedule(
            schedule=schedule,
            base_lr=best.base_lr,
            bound=best.bound,
            relative_bound=best.bound / least,
        )
        for schedule, best in ranked
    ]


def _best(schedule: Candidate, horizon: int, loss: _Loss, pointer: str) -> _Best:
    """``pointer``: where the request names the schedule."""
    with within_doubles(partial(Invalid.at, pointer)):
        terms = _terms(schedule, horizon, loss)
        best = _Best(terms.best_factor, terms.best_total)
        if not (0 < best.base_lr < math.inf and 0 < best.bound < math.inf):
            raise ValueError(
                "expected a base rate and a bound within double precision, saw "
                f"{best.base_lr} and {best.bound}"
            )
        return best


def _terms(schedule: Candidate, horizon: int, loss: _Loss) -> BoundTerms:
    """Return the terms at base rate 1."""
    norms = np.broadcast_to(loss.grad_norm, horizon)
    if isinstance(schedule, ScheduleFree):
        return split_schedule_free_bound(np.ones(horizon), norms, D=loss.distance)
    return split_bound(_shape(schedule, horizon), norms, D=loss.distance)


def _shape(schedule: Candidate, horizon: int) -> Floats:
    if isinstance(schedule, ScheduleFree):
        return np.ones(horizon)
    return rates(schedule.name, steps=horizon, **schedule.model_dump(exclude={"name"}))


def _extension(run: ExtendRun, loss: _Loss) -> ExtensionResource:
    """Extend a run at its best base rate."""
    with within_doubles(partial(Invalid.at, "/extend/schedule")):
        return _extended(run, loss)


def _extended(run: ExtendRun, loss: _Loss) -> ExtensionResource:
    norms = np.broadcast_to(np.sqrt(np.mean(np.square(loss.grad_norm))), run.from_steps)
    is_averaged = isinstance(run.schedule, ScheduleFree)
    base_lr = _terms(run.schedule, run.from_steps, loss).best_factor
    eta = base_lr * _shape(run.schedule, run.from_steps)
    schedule = None if isinstance(run.schedule, ScheduleFree) else run.schedule
    extension = Extension(
        blocks=blocks_of([Steps(eta, norms)], num_steps=run.from_steps),
        averaging=EQUAL_WEIGHTS if is_averaged else None,
        schedule=schedule,
        made_for=run.from_steps,
        to_step=run.to_steps,
        grad_norm=float(norms[0]),
        distance=loss.distance,
    )
    made_for = run.from_steps if schedule is not None and has_horizon(schedule) else None
    return extension_resource(extension, made_for=made_for, predict=_no_losses)


def _no_losses(bounds: Floats) -> Floats:
    return np.full(bounds.shape, np.nan)
