"""How a job trains: one optimizer step, and over how many ranks."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from roadless.service.contract.base import Spec

Precision = Literal["fp32", "amp_bf16", "bf16"]


class TrainingSpec(Spec):
    """One optimizer step: how many samples, from which seed, in which precision, and its guards."""

    batch_size: int = Field(64, ge=1, le=10**7, description="global samples per optimizer step")
    accumulation_steps: int = Field(
        1,
        ge=1,
        le=2**16,
        description="microbatches that each rank's samples are computed in, to save memory; "
        "gradients are those of the whole batch, batch norm sees one microbatch at a time",
    )
    seed: int = Field(0, ge=0, lt=2**63)
    max_grad_norm: float | None = Field(None, gt=0, description="clip the global norm; null: never")
    precision: Precision = Field(
        "fp32",
        description="amp_bf16: float32 parameters, bfloat16 arithmetic where it is safe; bf16: "
        "bfloat16 parameters with stochastic rounding and float32 optimizer state",
    )
    activation_checkpointing: bool = Field(
        False, description="compute each block's activations twice instead of keeping them"
    )
    compile: bool = Field(False, description="use torch.compile for training, not for evaluation")
    deterministic: bool = Field(
        False, description="only deterministic kernels; an operation without one fails the job"
    )
    on_non_finite: Literal["fail", "skip"] = Field(
        "fail",
        description="a loss or gradient norm that is not finite fails the job, or skips the update "
        "of that step",
    )
    max_skips: int = Field(
        10, ge=1, le=10**6, description="updates skipped in a row before the job fails"
    )


class ParallelismSpec(Spec):
    """How many ranks, what each of them holds, and how they share the model.

    With ``min_workers`` and ``max_workers`` a job is elastic: each attempt gets as many ranks as
    fit, and the batch, its order and the number of steps stay the same.
    """

    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: every rank has the model; fsdp: each has a shard of every tensor"
    )
    replicas: int = Field(
        1, ge=1, le=4096, description="fsdp: copies of the model, each sharded over its own ranks"
    )
    num_workers: int = Field(
        1, ge=1, le=4096, description="ranks; for an elastic job, the largest number"
    )
    min_workers: int | None = Field(
        None, ge=1, le=4096, description="fewest ranks of an elastic job; null: num_workers"
    )
    max_workers: int | None = Field(
        None, ge=1, le=4096, description="alias of num_workers for an elastic job"
    )
    cpus_per_worker: int = Field(1, ge=1, le=1024, description="cores reserved, and torch threads")
    gpus_per_worker: Literal[0, 1] = 0

    @model_validator(mode="before")
    @classmethod
    def _num_workers_is_the_maximum(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("max_workers") is not None:
            return {"num_workers": fields["max_workers"], **fields}
        return fields

    @model_validator(mode="after")
    def _sizes_fit_each_other(self) -> Self:
        if self.max_workers not in (None, self.num_workers):
            raise ValueError(
                f"expected num_workers to be max_workers = {self.max_workers} or absent, "
                f"saw {self.num_workers}"
            )
        if self.fewest_workers > self.num_workers:
            raise ValueError(
                f"expected min_workers of at most {self.num_workers}, saw {self.min_workers}"
            )
        return self

    @model_validator(mode="after")
    def _replicas_fit_the_strategy(self) -> Self:
        if self.replicas > 1 and self.strategy != "fsdp":
            raise ValueError(
                f"expected replicas only for fsdp, saw {self.replicas} for {self.strategy}"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """The smallest gang that the job runs on."""
        return self.num_workers if self.min_workers is None else self.min_workers


def gang_sizes(parallelism: ParallelismSpec, *, batch_size: int) -> tuple[int, ...]:
    """Return the numbers of ranks that a job can run on, largest first; empty when none fits.

    A size divides ``batch_size``, the global samples of a step, and is a multiple of the replicas.

    >>> gang_sizes(ParallelismSpec(min_workers=1, max_workers=4), batch_size=48)
    (4, 3, 2, 1)
    """
    sizes = range(parallelism.num_workers, parallelism.fewest_workers - 1, -1)
    return tuple(n for n in sizes if not batch_size % n and not n % parallelism.replicas)


def accumulation_steps(
    training: TrainingSpec, parallelism: ParallelismSpec, *, world_size: int
) -> int:
    """Return in how many equal microbatches a rank computes its samples of one step.

    ``accumulation_steps`` at full size. A smaller gang computes more of them, none larger
    than at full size, so that what fits a rank's memory still fits.

    >>> job = TrainingSpec(batch_size=48), ParallelismSpec(min_workers=1, max_workers=4)
    >>> [accumulation_steps(*job, world_size=n) for n in (4, 3, 2, 1)]
    [1, 2, 2, 4]
    """
    samples = training.batch_size // world_size
    largest = training.batch_size // (
        largest_gang(training, parallelism) * training.accumulation_steps
    )
    steps = -(-samples // largest)
    while samples % steps:
        steps += 1
    return steps


def largest_gang(training: TrainingSpec, parallelism: ParallelismSpec) -> int:
    """Return the number of ranks at full size. Raises ValueError when no size fits the batch."""
    sizes = gang_sizes(parallelism, batch_size=training.batch_size)
    if not sizes:
        asked = f"{parallelism.fewest_workers} to {parallelism.num_workers}"
        if parallelism.fewest_workers == parallelism.num_workers:
            asked = str(parallelism.num_workers)
        raise ValueError(
            f"expected num_workers to divide training.batch_size = {training.batch_size} and to be "
            f"a multiple of replicas = {parallelism.replicas}, saw {asked}"
        )
    if training.batch_size % (sizes[0] * training.accumulation_steps):
        raise ValueError(
            f"expected training.batch_size to be a multiple of num_workers x accumulation_steps = "
            f"{sizes[0]} x {training.accumulation_steps}, saw {training.batch_size}"
        )
    return sizes[0]
