"""From a specification and a bare model to what is trained, and the context of a rank.

A model gets its precision, its device, its ranks and its optimizer here. :class:`RankContext` is
what everything above needs of its rank.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from roadless import optim
from roadless.optim.core.positions import TwoPositions
from roadless.service.contract.checkpoint.manifest import (
    CheckpointFile,
    CheckpointKind,
    EvaluationReceipt,
    Manifest,
)
from roadless.service.contract.job.optimizers import OptimizerSpec, ScheduleFreeWrapperSpec
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.worker.distributed.activation_checkpointing import recompute_activations
from roadless.worker.distributed.layout import lay_out
from roadless.worker.distributed.parallel import replicate, shard
from roadless.worker.distributed.precision import set_precision
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.distributed.shared_tensors import share_start
from roadless.worker.errors import ModelInvalid
from roadless.worker.evaluation.sets import Datasets
from roadless.worker.model.faults import blaming
from roadless.worker.model.parameters import require_trainable
from roadless.worker.position import Position
from roadless.worker.reporting.reporter import Reporter

#: The contract's short names; every other name is the class's own.
_CLASS_OF_SHORT_NAME = {
    "sgd_schedulefree": "SGDScheduleFree",
    "adamw_schedulefree": "AdamWScheduleFree",
    "adamw_schedulefree_paper": "AdamWScheduleFreePaper",
    "radam_schedulefree": "RAdamScheduleFree",
    "adamc_schedulefree_plus": "AdamCScheduleFreePlusPaper",
    "schedulefree_wrapper": "ScheduleFreeWrapper",
    "adamw": "ForeachAdamW",
    "laprop": "ForeachLaProp",
    "adopt": "ForeachADOPT",
    "soap": "SOAP",
}


@dataclass(frozen=True)
class TrainingSetup:
    """A specification made ready to train.

    ``model``: the bare model, which is evaluated and saved. ``wrapped``: the same parameters in the
    form that is trained: a replica, compiled, or the model itself. ``datasets``: those for training
    and for evaluation.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: TwoPositions
    datasets: Datasets


@dataclass(frozen=True)
class RankContext:
    """One rank of one attempt: what it trains, its peers, and where it reports."""

    brief: AttemptBrief
    cluster: Cluster
    reporter: Reporter
    setup: TrainingSetup

    def manifest(
        self,
        checkpoint_id: str,
        kind: CheckpointKind,
        position: Position,
        files: tuple[CheckpointFile, ...],
        *,
        evaluation: EvaluationReceipt | None = None,
    ) -> Manifest:
        """Return the manifest of a checkpoint that this attempt has taken at ``position``."""
        return Manifest(
            checkpoint_id=checkpoint_id,
            job_id=self.brief.job_id,
            attempt_id=self.brief.attempt_id,
            kind=kind,
            step=position.step,
            samples=position.samples,
            spec=self.brief.spec.model_dump(mode="json"),
            evaluation=evaluation,
            files=files,
        )


def build_optimizer(spec: OptimizerSpec, *, params: Iterable[nn.Parameter]) -> TwoPositions:
    """Return the optimizer. The spec's fields are the optimizer's arguments by name."""
    make = optimizer_class(spec.name)
    if isinstance(spec, ScheduleFreeWrapperSpec):
        make_base = getattr(torch.optim, spec.base.name)
        base = make_base(params, **spec.base.model_dump(exclude={"name"}))
        return make(base, **spec.model_dump(exclude={"name", "base"}))
    return make(params, **spec.model_dump(exclude={"name"}))


def optimizer_class(name: str) -> Callable[..., TwoPositions]:
    """The class of ``optim`` that a name of the contract refers to."""
    make: Callable[..., TwoPositions] = getattr(optim, _CLASS_OF_SHORT_NAME.get(name, name))
    return make


def set_up_training(
    model: nn.Module, *, spec: JobSpec, datasets: Datasets, cluster: Cluster
) -> TrainingSetup:
    """Convert a fresh float32 model on the CPU to its precision; move it to its device and ranks.

    Raises ModelInvalid for a model that cannot do what the specification asks for.
    """
    training, parallelism = spec.training, spec.parallelism
    if training.deterministic:
        require_determinism()
    with blaming(ModelInvalid, "a model that tells its parameters", has_our_code=True):
        require_trainable(model)
    share_start(model, cluster=cluster)
    lay_out(model, parallelism=parallelism)
    set_precision(model, training.precision)
    if training.activation_checkpointing:
        recompute_activations(model, is_compiled=training.compile)
    is_sharded = parallelism.strategy == "fsdp" and cluster.world_size > 1
    if is_sharded:
        shard(model, cluster=cluster, parallelism=parallelism)
    with blaming(ModelInvalid, f"a model that can be moved to {cluster.device.type}"):
        model.to(cluster.device)
    optimizer = build_optimizer(spec.optimizer, params=model.parameters())
    computing = _compiled(model) if training.compile else model
    is_replicated = cluster.world_size > 1 and not is_sharded
    wrapped = replicate(computing) if is_replicated else computing
    return TrainingSetup(model=model, wrapped=wrapped, optimizer=optimizer, datasets=datasets)


def require_determinism() -> None:
    """Make torch deterministic to the bit in this process, on a GPU too, or fail."""
    # Read when cuBLAS first computes; without it, cuBLAS is not deterministic.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _compiled(model: nn.Module) -> nn.Module:
    """Compile for training only: a stranger's evaluation gives the same bits without it."""
    return cast(nn.Module, torch.compile(model))
