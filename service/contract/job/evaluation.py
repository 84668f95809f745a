"""When a job is evaluated, and which checkpoints are kept."""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from roadless.service.contract.base import Spec
from roadless.service.contract.job.evaluation_sets import (
    MAX_CUSTOM_METRICS,
    MAX_SETS,
    CustomMetric,
    EvaluationSet,
    check_names,
)

#: The forms of a cadence; a job has exactly one.
_CADENCES: Final = ("share", "every_steps", "every_seconds", "geometric")


class GeometricCadence(Spec):
    """Steps at growing distances: the first, then each ``factor`` times the one before.

    Rounded to whole steps, and at least one step apart.
    """

    first: int = Field(ge=1, le=2**31)
    factor: float = Field(ge=1.01, le=1000)


class EvaluationSpec(Spec):
    """When and how the averaged point x is evaluated on held-out data.

    One of ``share``, ``every_steps``, ``every_seconds`` and ``geometric`` says when; another
    evaluation comes at the end and whenever a user requests one.
    """

    share: float | None = Field(
        0.01,
        ge=1e-6,
        le=1,
        description="share of the work of training that evaluating may cost: the more held-out "
        "samples, the less often; counted in samples, an evaluated one as half of a trained one. "
        "The first evaluation is after step 10",
    )
    every_steps: int | None = Field(None, ge=1)
    every_seconds: float | None = Field(
        None, gt=0, le=10**9, description="at the first step after this many seconds in RUNNING"
    )
    geometric: GeometricCadence | None = None
    placement: Literal["inline", "async"] = Field(
        "inline",
        description="inline: training waits for its evaluations; async: a separate process "
        "computes them from the checkpoint's files, on the lead's node, while training continues",
    )
    at_y: bool = Field(
        False,
        description="also evaluate at the training point y, as eval.loss_at_y; only on the "
        "held-out part of the model's data",
    )
    batch_size: int = Field(256, ge=1, le=10**6)
    max_batches: int | None = Field(None, ge=1, description="null: the whole held-out set")
    batchnorm_batches: int = Field(
        8, ge=1, le=10**4, description="training batches for the batch-norm statistics of x"
    )
    sets: tuple[EvaluationSet, ...] = Field(
        (), max_length=MAX_SETS, description="further held-out sets, evaluated at the same x"
    )
    metrics: tuple[CustomMetric, ...] = Field(
        (), max_length=MAX_CUSTOM_METRICS, description="added to those of the task, on every set"
    )

    @model_validator(mode="before")
    @classmethod
    def _another_cadence_replaces_the_default(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "share" in value:
            return value
        is_default = all(value.get(name) is None for name in _CADENCES)
        return value if is_default else {**value, "share": None}

    @model_validator(mode="after")
    def _has_one_cadence(self) -> Self:
        named = [name for name in _CADENCES if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                f"expected one of {', '.join(_CADENCES)}, saw {' and '.join(named) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Self:
        check_names(self.sets, self.metrics)
        return self

    @model_validator(mode="after")
    def _has_y_at_hand(self) -> Self:
        if self.at_y and self.placement == "async":
            raise ValueError(
                "expected at_y = false with placement 'async', where the evaluation sees x alone, "
                "saw true"
            )
        return self


class CheckpointsSpec(Spec):
    """Which eval points keep their checkpoint, and how often the training state is saved."""

    keep_last: int = Field(3, ge=1, le=1000)
    keep_best: int = Field(
        1, ge=0, le=1000, description="by eval loss, in addition to the last ones"
    )
    keep_every_steps: int | None = Field(
        None, ge=1, description="also keep each whose step is a multiple of this"
    )
    max_age_seconds: float | None = Field(
        None,
        ge=1,
        le=10**9,
        description="older eval checkpoints are deleted, whichever of these rules keeps them, "
        "except the newest one and pinned ones",
    )
    state_every_seconds: float | None = Field(
        30.0,
        gt=0,
        le=10**6,
        description="the training state is saved at the first step after this many seconds in "
        "RUNNING: the most that a lost rank costs; null: state_every_steps decides",
    )
    state_every_steps: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _steps_replace_the_default(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "state_every_seconds" in value:
            return value
        is_default = value.get("state_every_steps") is None
        return value if is_default else {**value, "state_every_seconds": None}

    @model_validator(mode="after")
    def _saves_by_seconds_or_by_steps(self) -> Self:
        if (self.state_every_seconds is None) == (self.state_every_steps is None):
            seen = "none" if self.state_every_steps is None else "both"
            raise ValueError(f"expected state_every_seconds or state_every_steps, saw {seen}")
        return self
