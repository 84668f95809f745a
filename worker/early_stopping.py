"""Early stopping: a metric that is good enough, or that no longer improves, ends a job. Pure.

The results of evaluations so far are part of the training state, so that a resumed attempt ends at
the same step as an uninterrupted one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from roadless.service.contract.job.budget import BudgetSpec, Mode, Patience, Until
from roadless.service.contract.states import Reason
from roadless.worker.errors import DataInvalid


@dataclass(frozen=True)
class EarlyStoppingRecord:
    """What planned evaluations have shown so far. A NaN is never better and never good enough."""

    watched: str | None = None  #: mode and metric of the patience; the next two belong to it
    best: float | None = None
    evaluations_since_best: int = 0
    reached: Reason | None = None
    limits: str | None = None  #: JSON of the budget that was reached

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "EarlyStoppingRecord":
        """Build the value from the JSON of a training state."""
        reason = record.get("reached")
        return cls(**{**record, "reached": reason and Reason(reason)})


#: Before the first planned evaluation.
NOTHING_JUDGED = EarlyStoppingRecord()


def reached(record: EarlyStoppingRecord, budget: BudgetSpec | None) -> Reason | None:
    """Return why the job ends early, if it does; a limit of another budget does not count.

    So an extended job trains at least until its next planned evaluation.
    """
    if record.reached is None or budget is None:
        return None
    return record.reached if record.limits == budget.model_dump_json() else None


def judge(
    record: EarlyStoppingRecord, values: Mapping[str, float], *, budget: BudgetSpec | None
) -> EarlyStoppingRecord:
    """Return the record with one more planned evaluation in it; a limit stays reached.

    ``values``: what it found, by metric. Raises DataInvalid when a metric of the budget is missing.
    """
    if reached(record, budget) is not None:
        return record  # the evaluation was already under way beside training
    if record.reached is not None:
        record = replace(record, evaluations_since_best=0, reached=None, limits=None)
    if budget is None:
        return record
    if budget.patience is not None:
        record = _waited(record, values, budget.patience)
    reason = _reason(record, values, budget)
    return replace(record, reached=reason, limits=reason and budget.model_dump_json())


def _reason(
    record: EarlyStoppingRecord, values: Mapping[str, float], budget: BudgetSpec
) -> Reason | None:
    if budget.until is not None and _is_good_enough(values, budget.until):
        return Reason.GOAL_REACHED
    patience = budget.patience
    if patience is not None and record.evaluations_since_best >= patience.evaluations:
        return Reason.NO_BETTER
    return None


def _waited(
    record: EarlyStoppingRecord, values: Mapping[str, float], patience: Patience
) -> EarlyStoppingRecord:
    """Compare the evaluation with the best before it; a change of metric starts over."""
    watched = f"{patience.mode} {patience.metric}"
    if record.watched != watched:
        record = EarlyStoppingRecord(watched=watched)
    value = _value(values, patience.metric)
    if _is_better(value, record.best, patience):
        return replace(record, best=value, evaluations_since_best=0)
    return replace(record, evaluations_since_best=record.evaluations_since_best + 1)


def _is_better(value: float, best: float | None, patience: Patience) -> bool:
    if best is None:
        return not math.isnan(value)
    return _gain(value, best, mode=patience.mode) > patience.min_delta


def _is_good_enough(values: Mapping[str, float], until: Until) -> bool:
    return _gain(_value(values, until.metric), until.value, mode=until.mode) >= 0


def _gain(value: float, other: float, *, mode: Mode) -> float:
    """By how much a value is better than another."""
    return other - value if mode == "min" else value - other


def _value(values: Mapping[str, float], metric: str) -> float:
    if metric not in values:
        seen = ", ".join(sorted(values))
        raise DataInvalid(f"expected the metric {metric!r} of this data, saw {seen} only")
    return values[metric]
