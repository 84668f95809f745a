"""How a job trains: one optimizer step, and over how many ranks."""

from typing import Literal

from pydantic import Field

from service.contract.base import Spec


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
