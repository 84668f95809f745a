"""Rules for new jobs and new budgets alone.

They came after jobs had been stored that break them, and those must stay readable: so the contract,
which reads both, does not have them.
"""

from roadless.service.contract.job.budget import MAX_LIMIT, BudgetSpec
from roadless.service.contract.job.data import RecordsData, require_possible_files
from roadless.service.contract.job.spec import JobSpec, data_of
from roadless.service.errors import Invalid


def require_admissible(spec: JobSpec) -> None:
    """Raise Invalid if the specification breaks one of these rules."""
    _require_possible_data(spec)
    if spec.budget is not None:
        require_bounded(spec.budget)
    _require_whole_parts(spec)


def require_bounded(budget: BudgetSpec) -> None:
    """Raise Invalid if a limit of the budget is larger than counters and doubles hold."""
    for name, limit in budget.model_dump(exclude={"until", "patience"}, exclude_none=True).items():
        if limit > MAX_LIMIT:
            message = f"expected at most {MAX_LIMIT}, saw {str(limit)[:80]}"
            raise Invalid.at(f"/budget/{name}", message)


def _require_possible_data(spec: JobSpec) -> None:
    for pointer, data in data_of(spec).items():
        try:
            require_possible_files(data)
            if isinstance(data, RecordsData):
                data.require_distinct_columns()
        except ValueError as error:
            raise Invalid.at(pointer, str(error)) from error


def _require_whole_parts(spec: JobSpec) -> None:
    try:
        spec.require_whole_parts()
    except ValueError as error:
        raise Invalid.at("/schedule", str(error)) from error
