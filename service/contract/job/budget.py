"""When a job ends by itself: at a limit, at a goal, or when it gets no better."""

from collections.abc import Mapping, Set
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from roadless.service.contract.base import Spec
from roadless.service.contract.job.tasks import Task

Mode = Literal["min", "max"]

#: The largest limit of a budget: counters in the database have 63 bits, shares of it are doubles.
#: Asked of new budgets only: stored ones from before this rule must stay readable.
MAX_LIMIT: Final = 2**60

#: What evaluations report for each task. Some need suitable data: top-5 accuracy needs enough
#: classes, bits per byte a text whose bytes are known.
METRICS: Final[Mapping[Task, frozenset[str]]] = {
    "classification": frozenset({"eval.loss", "eval.accuracy", "eval.top5_accuracy"}),
    "regression": frozenset({"eval.loss", "eval.mse", "eval.mae"}),
    "causal_lm": frozenset(
        {
            "eval.loss",
            "eval.accuracy",
            "eval.bits_per_token",
            "eval.bits_per_byte",
            "eval.perplexity",
        }
    ),
}


class Until(Spec):
    """A goal: the job ends when an evaluation finds a metric at a value or beyond it."""

    metric: str = Field(max_length=100, description="as evaluations report it, as in eval.accuracy")
    value: float
    mode: Mode = Field(description="min: at most the value; max: at least the value")


class Patience(Spec):
    """The job ends after this many evaluations in a row without an improvement."""

    metric: str = Field("eval.loss", max_length=100)
    evaluations: int = Field(ge=1, le=10**6)
    min_delta: float = Field(0.0, ge=0, description="better means better by more than this")
    mode: Mode = Field("min", description="min: less is better; max: more is better")


_AT_MOST = Field(json_schema_extra={"maximum": MAX_LIMIT})
_Count = Annotated[int, Field(ge=1), _AT_MOST]
_Seconds = Annotated[float, Field(gt=0), _AT_MOST]


class BudgetSpec(Spec):
    """When a job ends by itself: at the first of these limits. No budget: it is open-ended.

    ``until`` and ``patience`` are judged by the evaluations that ``evaluation`` plans; those that a
    user requests, or that are made at an end, do not count.
    """

    max_steps: _Count | None = None
    max_samples: _Count | None = None
    max_tokens: _Count | None = None
    max_seconds: _Seconds | None = Field(None, description="seconds in RUNNING, all attempts")
    max_gpu_seconds: _Seconds | None = None
    until: Until | None = Field(None, description="ends the job when a metric is good enough")
    patience: Patience | None = Field(None, description="ends the job when it stops improving")

    @model_validator(mode="after")
    def _names_a_limit(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("expected at least one limit, saw none; null is an open-ended job")
        return self


def check_metrics(budget: BudgetSpec, *, known: Set[str]) -> None:
    """Raise ValueError when a goal names a metric that evaluations do not report.

    ``known``: those that they do report, as in ``eval.loss``.
    """
    for name, goal in (("until", budget.until), ("patience", budget.patience)):
        if goal is not None and goal.metric not in known:
            raise ValueError(
                f"expected budget.{name}.metric among {', '.join(sorted(known))}, "
                f"saw {goal.metric!r}"
            )
