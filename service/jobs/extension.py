"""A larger budget, and how a schedule continues towards its new end. Pure."""

from collections.abc import Mapping

from pydantic import ValidationError

from roadless.service.contract.job.budget import MAX_LIMIT, BudgetSpec
from roadless.service.contract.job.schedules import has_horizon
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.requests import Extend
from roadless.service.contract.resources import ProblemError, Progress
from roadless.service.errors import Invalid

#: The part of a job's progress that each limit bounds.
_USED = {
    "max_steps": "step",
    "max_samples": "samples",
    "max_tokens": "tokens",
    "max_seconds": "wall_seconds",
    "max_gpu_seconds": "gpu_seconds",
}
NO_POINTERS: Mapping[str, str] = {}
#: Where the fields that an extension changes are in its request.
_POINTERS = {"schedule_extensions": "/plan", "budget": ""}


def extended(spec: JobSpec, asked: Extend, *, progress: Progress, from_step: int) -> JobSpec:
    """The specification with a larger budget, or none.

    Args:
        spec: the current one.
        asked: by how much the budget grows. An open-ended job's is counted from its progress.
        progress: how far the job is.
        from_step: the step that the next attempt resumes from; rates up to it stay.

    Raises:
        Invalid: the amounts do not suit the budget, or the plan the schedule.
    """
    budget = _larger(spec.budget, asked, progress=progress)
    planned = _planned(spec, asked, budget, from_step=from_step)
    limits = budget.model_dump(exclude_none=True) if budget else None
    longer = changed(spec, {"budget": limits, **planned}, pointers=_POINTERS)
    if planned:
        _require_whole_parts(longer)
    return longer


def _require_whole_parts(spec: JobSpec) -> None:
    try:
        spec.require_whole_parts()
    except ValueError as error:
        raise _fault("/plan", str(error)) from error


def changed(
    spec: JobSpec, changes: Mapping[str, object], *, pointers: Mapping[str, str] = NO_POINTERS
) -> JobSpec:
    """The specification with some fields replaced; raises Invalid when that makes no sense.

    ``pointers``: where a field of the specification is in the request, if not under its name.
    """
    try:
        return JobSpec.model_validate(spec.model_dump(mode="json") | dict(changes))
    except ValidationError as error:
        faults = tuple(
            _as_problem(fault["loc"], fault["msg"], pointers) for fault in error.errors()
        )
        raise Invalid("; ".join(fault.message for fault in faults[:3]), errors=faults) from error


def _as_problem(
    path: tuple[str | int, ...], message: str, pointers: Mapping[str, str]
) -> ProblemError:
    field = str(path[0]) if path else ""
    pointer = pointers.get(field, "".join(f"/{part}" for part in path))
    return ProblemError(pointer=pointer, message=message.removeprefix("Value error, "))


def moves_horizon(spec: JobSpec, asked: Extend) -> bool:
    """Whether the extension changes the horizon of a schedule that has one."""
    if spec.schedule is None or not has_horizon(spec.schedule):
        return False
    return asked.steps is not None or not asked.amounts


def needs_plan(spec: JobSpec, budget: BudgetSpec | None) -> bool:
    """Whether this budget changes the horizon of a schedule that has one."""
    if spec.schedule is None or not has_horizon(spec.schedule):
        return False
    assert spec.budget is not None
    return budget is None or budget.max_steps != spec.budget.max_steps


def _larger(budget: BudgetSpec | None, asked: Extend, *, progress: Progress) -> BudgetSpec | None:
    amounts = asked.amounts
    if not amounts:
        return None
    if budget is None:
        have = {limit: getattr(progress, used) for limit, used in _USED.items()}
        return BudgetSpec.model_validate({name: have[name] + amounts[name] for name in amounts})
    limits = budget.model_dump(include=set(_USED), exclude_none=True)
    for name in amounts.keys() - limits.keys():
        known = ", ".join(limit.removeprefix("max_") for limit in limits) or "goals only"
        raise _fault(
            f"/{name.removeprefix('max_')}",
            f"expected an amount of what the budget limits ({known}), saw another",
        )
    limits |= {name: limits[name] + amount for name, amount in amounts.items()}
    _require_room(limits, progress)
    _require_bounded(limits)
    return BudgetSpec.model_validate(budget.model_dump() | limits)


def _require_bounded(limits: dict[str, int | float]) -> None:
    for name, limit in limits.items():
        if limit > MAX_LIMIT:
            raise _fault(
                f"/{name.removeprefix('max_')}",
                f"expected a budget of at most {MAX_LIMIT} in all, saw {limit}; add less, or "
                "nothing to make the job open-ended",
            )


def _require_room(limits: dict[str, int | float], progress: Progress) -> None:
    for name, limit in limits.items():
        if getattr(progress, _USED[name]) >= limit:
            raise _fault(
                f"/{name.removeprefix('max_')}",
                f"expected an amount that leaves room below {name}, saw {limit} with "
                f"{getattr(progress, _USED[name])} used: the job would end at once",
            )


def _planned(
    spec: JobSpec, asked: Extend, budget: BudgetSpec | None, *, from_step: int
) -> dict[str, object]:
    """What a plan changes in the specification."""
    if not moves_horizon(spec, asked):
        if asked.plan is not None:
            raise _fault("/plan", "expected no plan, since no rate depends on the new end, saw one")
        return {}
    assert spec.schedule is not None
    assert spec.budget is not None
    assert spec.budget.max_steps is not None
    if budget is None:
        raise _fault(
            "/steps",
            f"expected a number of steps, since the rates of {spec.schedule.name!r} depend on it, "
            "saw none. Only schedule-free jobs can run without an end",
        )
    if asked.plan is None:
        raise _fault("/plan", _why_a_plan(spec.schedule.name, spec.budget.max_steps))
    extension = {
        "from_step": min(from_step, spec.budget.max_steps),
        "horizon": spec.budget.max_steps,
        "plan": asked.plan.model_dump(),
    }
    before = [one.model_dump(mode="json") for one in spec.schedule_extensions]
    return {"schedule_extensions": [*before, extension]}


def _why_a_plan(name: str, max_steps: int) -> str:
    return (
        f"expected a plan, saw none. The rates of {name!r} were laid out for {max_steps} steps and "
        'end there; say how they go on: {"kind": "cooldown", "cooldown_len": part of all steps}, '
        '{"kind": "second_stage", "factor": part of the rate} or {"kind": "keep_last_rate"}. '
        "Schedule-free jobs need no plan: none of their rates depends on where training ends"
    )


def _fault(pointer: str, message: str) -> Invalid:
    return Invalid(message, errors=(ProblemError(pointer=pointer, message=message),))
