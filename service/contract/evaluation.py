"""When a job is evaluated, and what is kept of it."""

from pydantic import Field

from service.contract.base import Spec


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
