"""What a user asks for: the job specification, its parts, bounds and defaults.

Frozen data, JSON both ways. Every choice is a union tagged by ``kind`` or ``name``; adding a choice
is adding a class here and a ``case`` in ``worker/build.py``.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from service.contract.base import Spec
from service.contract.data import DataSpec
from service.contract.models import ModelSpec
from service.contract.optimizers import OptimizerSpec

SPEC_VERSION: Final = 1

Label = Annotated[str, StringConstraints(min_length=1, max_length=63)]
Task = Literal["classification", "causal_lm"]

_TASK_OF_DATA: dict[str, Task] = {
    "digits": "classification",
    "python_stdlib_bytes": "causal_lm",
    "bytes": "causal_lm",
}
_TASK_OF_MODEL: dict[str, Task] = {
    "mlp": "classification",
    "convnet": "classification",
    "gpt": "causal_lm",
}


# ---- how it runs ------------------------------------------------------------------------------


class TrainingSpec(Spec):
    """One optimizer step: how many samples, from which seed, how far the gradient may reach."""

    batch_size: int = Field(64, ge=1, le=10**7, description="global samples per optimizer step")
    seed: int = Field(0, ge=0, lt=2**63)
    max_grad_norm: float | None = Field(None, gt=0, description="clip the global norm; null: never")


class ParallelismSpec(Spec):
    """How many ranks, and what each of them holds."""

    strategy: Literal["ddp"] = "ddp"
    num_workers: int = Field(1, ge=1, le=4096)
    cpus_per_worker: int = Field(1, ge=1, le=1024, description="cores reserved, and torch threads")
    gpus_per_worker: Literal[0, 1] = 0


class BudgetSpec(Spec):
    """When a job ends by itself: at the first of these limits. No budget: it is open-ended."""

    max_steps: int | None = Field(None, ge=1)
    max_samples: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_seconds: float | None = Field(None, gt=0, description="seconds in RUNNING, all attempts")
    max_gpu_seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _names_a_limit(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("expected at least one limit; use null for an open-ended job")
        return self


class EvaluationSpec(Spec):
    """When and how the averaged point x is evaluated on held-out data."""

    every_steps: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1, le=10**6)
    max_batches: int | None = Field(None, ge=1, description="null: the whole held-out set")
    batchnorm_batches: int = Field(
        8, ge=1, le=10**4, description="training batches for the batch-norm statistics of x"
    )


class CheckpointsSpec(Spec):
    """Which eval points keep their checkpoint, and how often the training state is saved."""

    keep_last: int = Field(3, ge=1, le=1000)
    keep_best: int = Field(1, ge=0, le=1000, description="by eval loss, beside the last ones")
    state_every_steps: int = Field(100, ge=1)


class RetrySpec(Spec):
    """How often a lost attempt is tried again without any training state gained in between."""

    max_attempts: int = Field(5, ge=1, le=1000)


class JobSpec(Spec):
    """A job as a user asks for it. Only model, data, task and optimizer have no default."""

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
    budget: BudgetSpec | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    retry: RetrySpec = RetrySpec()

    @field_validator("task")
    @classmethod
    def _task_fits_model_and_data(cls, task: Task, info: ValidationInfo) -> Task:
        for part, tasks in (("model", _TASK_OF_MODEL), ("data", _TASK_OF_DATA)):
            if part in info.data and tasks[info.data[part].name] != task:
                name = info.data[part].name
                raise ValueError(f"expected {tasks[name]!r} for {part} {name!r}, saw {task!r}")
        return task

    @field_validator("budget")
    @classmethod
    def _every_limit_can_be_reached(
        cls, value: BudgetSpec | None, info: ValidationInfo
    ) -> BudgetSpec | None:
        seats, task = info.data.get("parallelism"), info.data.get("task")
        if value and value.max_gpu_seconds and seats and not seats.gpus_per_worker:
            raise ValueError("expected no max_gpu_seconds for a job without GPUs, saw one")
        if value and value.max_tokens and task == "classification":
            raise ValueError("expected no max_tokens for data without tokens, saw one")
        return value

    @field_validator("parallelism")
    @classmethod
    def _ranks_share_the_batch_evenly(
        cls, value: ParallelismSpec, info: ValidationInfo
    ) -> ParallelismSpec:
        training = info.data.get("training")
        if training is not None and training.batch_size % value.num_workers:
            raise ValueError(
                f"expected num_workers to divide training.batch_size = {training.batch_size}, "
                f"saw {value.num_workers}"
            )
        return value
