"""What a user submits: the job specification, its parts, bounds and defaults.

Frozen data, JSON both ways. Every choice is a union tagged by ``kind`` or ``name``; a new choice is
a class beside the others and a ``case`` where the worker builds it.
"""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from roadless.service.contract.base import Spec
from roadless.service.contract.job.budget import MAX_LIMIT, BudgetSpec, check_metrics
from roadless.service.contract.job.data import DataSpec, UploadedData, label_of_data, tasks_of_data
from roadless.service.contract.job.evaluation import CheckpointsSpec, EvaluationSpec
from roadless.service.contract.job.evaluation_sets import check_set, metric_names
from roadless.service.contract.job.extensions import (
    ScheduleExtension,
    check_cooldowns,
    check_extensions,
)
from roadless.service.contract.job.models import ModelSpec, label_of, needs_context, tasks_of
from roadless.service.contract.job.optimizers import OptimizerSpec
from roadless.service.contract.job.schedules import (
    ScheduleSpec,
    check_parts,
    cooldown_of,
    cut_steps,
    has_horizon,
    whole_steps,
)
from roadless.service.contract.job.tasks import Task
from roadless.service.contract.job.training import ParallelismSpec, TrainingSpec, largest_gang
from roadless.service.contract.secrets import SecretNames, check_together

SPEC_VERSION: Final = 1

Label = Annotated[str, StringConstraints(min_length=1, max_length=63)]

# ---- how it runs ------------------------------------------------------------------------------


class RetrySpec(Spec):
    """How often a lost attempt is retried without any training state gained in between."""

    max_attempts: int = Field(5, ge=1, le=1000)
    hang_seconds: float = Field(
        600,
        ge=1,
        le=86_400,
        description="a rank that makes no step for this long is considered hung; longer than the "
        "slowest step, evaluation batch and checkpoint write",
    )


class JobSpec(Spec):
    """A job as a user submits it. Only model, data, task and optimizer have no default."""

    #: Most fields are judged beside others: what was left out must fit them too.
    model_config = ConfigDict(validate_default=True)

    spec_version: Literal[1] = SPEC_VERSION
    name: str = Field("job", min_length=1, max_length=100)
    project: Label = "default"
    labels: dict[Label, Annotated[str, StringConstraints(max_length=255)]] = Field(
        default_factory=dict, max_length=64
    )
    priority: int = Field(0, ge=-1000, le=1000, description="higher starts first")
    model: ModelSpec
    data: DataSpec
    task: Task
    optimizer: OptimizerSpec
    training: TrainingSpec = TrainingSpec()
    parallelism: ParallelismSpec = ParallelismSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    budget: BudgetSpec | None = None
    schedule: ScheduleSpec | None = Field(
        None, description="null: the optimizer's own rate, as schedule-free training needs it"
    )
    schedule_extensions: tuple[ScheduleExtension, ...] = Field(
        (), max_length=100, description="how the rates continued each time the job was extended"
    )
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    retry: RetrySpec = RetrySpec()
    secrets: SecretNames = Field(
        (), description="names of secrets of the project, set as environment variables of the ranks"
    )

    @field_validator("secrets")
    @classmethod
    def _secrets_are_whole_and_named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("expected each secret once, saw one twice")
        check_together(value)
        return value

    @field_validator("secrets")
    @classmethod
    def _every_bearer_is_one_of_them(
        cls, value: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        sets = info.data["evaluation"].sets if "evaluation" in info.data else ()
        for data in (info.data.get("data"), *(one.data for one in sets)):
            bearer = getattr(data, "bearer", None)
            if bearer is not None and bearer not in value:
                raise ValueError(
                    f"expected {bearer}, which data.bearer names, to be listed in secrets, saw none"
                )
        return value

    @field_validator("task")
    @classmethod
    def _model_can_do_the_task(cls, task: Task, info: ValidationInfo) -> Task:
        model = info.data.get("model")
        if model is not None and task not in (able := tasks_of(model)):
            expected = " or ".join(repr(name) for name in sorted(able))
            raise ValueError(f"expected {expected} for model {label_of(model)!r}, saw {task!r}")
        if task == "causal_lm" and model is not None and needs_context(model):
            raise ValueError("expected model.context for 'causal_lm', saw none")
        return task

    @field_validator("task")
    @classmethod
    def _task_fits_data(cls, task: Task, info: ValidationInfo) -> Task:
        data = info.data.get("data")
        if data is not None and task not in (able := tasks_of_data(data)):
            expected = " or ".join(repr(name) for name in sorted(able))
            raise ValueError(f"expected {expected} for data {label_of_data(data)!r}, saw {task!r}")
        return task

    @field_validator("evaluation")
    @classmethod
    def _sets_suit_task_and_data(
        cls, value: EvaluationSpec, info: ValidationInfo
    ) -> EvaluationSpec:
        if "task" in info.data and "data" in info.data:
            for one in value.sets:
                check_set(one, like=info.data["data"], task=info.data["task"])
        return value

    @field_validator("budget")
    @classmethod
    def _every_limit_can_be_reached(
        cls, value: BudgetSpec | None, info: ValidationInfo
    ) -> BudgetSpec | None:
        parallelism, task = info.data.get("parallelism"), info.data.get("task")
        if value and value.max_gpu_seconds and parallelism and not parallelism.gpus_per_worker:
            raise ValueError("expected no max_gpu_seconds for a job without GPUs, saw one")
        if value and value.max_tokens and task in ("classification", "regression"):
            raise ValueError("expected no max_tokens for data without tokens, saw one")
        return value

    @field_validator("budget")
    @classmethod
    def _goals_are_of_the_task(
        cls, value: BudgetSpec | None, info: ValidationInfo
    ) -> BudgetSpec | None:
        if value and "task" in info.data and "evaluation" in info.data:
            evaluation = info.data["evaluation"]
            known = metric_names(
                info.data["task"], sets=evaluation.sets, metrics=evaluation.metrics
            )
            check_metrics(value, known=known)
        return value

    @field_validator("schedule")
    @classmethod
    def _horizon_is_known(
        cls, value: ScheduleSpec | None, info: ValidationInfo
    ) -> ScheduleSpec | None:
        budget = info.data.get("budget")
        if (
            value
            and has_horizon(value)
            and "budget" in info.data
            and not (budget and budget.max_steps)
        ):
            raise ValueError(
                f"expected budget.max_steps for {value.name!r}, whose rates depend on the number "
                "of steps, saw none"
            )
        return value

    @field_validator("schedule")
    @classmethod
    def _parts_fit_the_budget(
        cls, value: ScheduleSpec | None, info: ValidationInfo
    ) -> ScheduleSpec | None:
        budget = info.data.get("budget")
        if value and budget and budget.max_steps and budget.max_steps <= MAX_LIMIT:
            share, num_steps = cooldown_of(value), budget.max_steps
            check_parts(value, share, num_steps=num_steps, steps_of=cut_steps)
        return value

    @field_validator("schedule")
    @classmethod
    def _one_warmup(cls, value: ScheduleSpec | None, info: ValidationInfo) -> ScheduleSpec | None:
        theirs = getattr(info.data.get("optimizer"), "warmup_steps", 0)
        if value and value.warmup_steps and theirs > 1:
            raise ValueError(
                f"expected a warmup of the schedule or of the optimizer, saw {value.warmup_steps} "
                f"and {theirs} steps"
            )
        return value

    @field_validator("schedule_extensions")
    @classmethod
    def _extensions_suit_the_schedule(
        cls, value: tuple[ScheduleExtension, ...], info: ValidationInfo
    ) -> tuple[ScheduleExtension, ...]:
        if "schedule" in info.data and "budget" in info.data:
            schedule, budget = info.data["schedule"], info.data["budget"]
            max_steps = budget.max_steps if budget else None
            check_extensions(value, schedule=schedule, max_steps=max_steps)
        return value

    @field_validator("parallelism")
    @classmethod
    def _ranks_share_the_batch_evenly(
        cls, value: ParallelismSpec, info: ValidationInfo
    ) -> ParallelismSpec:
        training = info.data.get("training")
        if training is not None:
            largest_gang(training, value)
        return value

    def require_whole_parts(self) -> None:
        """Raise ValueError unless warmups and cooldowns, in whole steps, fit within the steps.

        Asked of new jobs and extensions only: in stored ones from before this rule cooldowns were
        cut, so that they may be a step too long.
        """
        if self.schedule is None or self.budget is None or self.budget.max_steps is None:
            return
        schedule, num_steps = self.schedule, self.budget.max_steps
        check_parts(schedule, cooldown_of(schedule), num_steps=num_steps, steps_of=whole_steps)
        check_cooldowns(
            self.schedule_extensions, schedule=schedule, max_steps=num_steps, steps_of=whole_steps
        )


def data_of(spec: JobSpec) -> dict[str, DataSpec]:
    """Return all data that a job uses, by the JSON pointers to it."""
    sets = enumerate(spec.evaluation.sets)
    return {"/data": spec.data} | {f"/evaluation/sets/{i}/data": one.data for i, one in sets}


def uploads_of(spec: JobSpec) -> dict[str, str]:
    """Return the ids of the uploaded data sets that a job uses, by the JSON pointers to them."""
    return {
        f"{pointer}/dataset_id": data.dataset_id
        for pointer, data in data_of(spec).items()
        if isinstance(data, UploadedData)
    }
