"""How a bare model becomes what is trained: its precision, its device, its ranks, its optimizer."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from roadless import optim
from roadless.optim.core.positions import TwoPositions
from roadless.service.contract.job.optimizers import OptimizerSpec, ScheduleFreeWrapperSpec
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.data.base import DataSet
from roadless.worker.distributed.activation_checkpointing import recompute_activations
from roadless.worker.distributed.parallel import replicate, shard
from roadless.worker.distributed.precision import set_precision
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.evaluation.sets import HeldOutSets


@dataclass(frozen=True)
class Built:
    """What a specification has become.

    ``model``: the bare model, which is evaluated and saved. ``wrapped``: the same parameters in the
    form that is trained: a replica, compiled, or the model itself. ``held_out``: all that is
    evaluated, and with it what is trained on.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: TwoPositions
    held_out: HeldOutSets

    @property
    def data(self) -> DataSet:
        """What is trained on."""
        return self.held_out.main


#: The contract's short names; every other name is that of the class.
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


def build_optimizer(spec: OptimizerSpec, *, params: Iterable[nn.Parameter]) -> TwoPositions:
    """Return the optimizer. The spec's fields are the optimizer's arguments, under their names."""
    make = optimizer_class(spec.name)
    if isinstance(spec, ScheduleFreeWrapperSpec):
        make_base = getattr(torch.optim, spec.base.name)
        base = make_base(params, **spec.base.model_dump(exclude={"name"}))
        return make(base, **spec.model_dump(exclude={"name", "base"}))
    return make(params, **spec.model_dump(exclude={"name"}))


def optimizer_class(name: str) -> Callable[..., TwoPositions]:
    """The class of ``optim`` that a name of the contract means."""
    found: Callable[..., TwoPositions] = getattr(optim, _CLASS_OF_SHORT_NAME.get(name, name))
    return found


def assemble(model: nn.Module, *, spec: JobSpec, held_out: HeldOutSets, cluster: Cluster) -> Built:
    """Bring a fresh float32 model of the CPU into its precision, onto its device and ranks.

    Raises ModelInvalid for a model that cannot do what the specification asks for.
    """
    training, seats = spec.training, spec.parallelism
    if training.deterministic:
        require_determinism()
    set_precision(model, training.precision)
    if training.activation_checkpointing:
        recompute_activations(model, is_compiled=training.compile)
    is_sharded = seats.strategy == "fsdp" and cluster.world_size > 1
    if is_sharded:
        shard(model, cluster=cluster, seats=seats)
    model.to(cluster.device)
    optimizer = build_optimizer(spec.optimizer, params=model.parameters())
    computing = _compiled(model) if training.compile else model
    is_replicated = cluster.world_size > 1 and not is_sharded
    wrapped = replicate(computing) if is_replicated else computing
    return Built(model=model, wrapped=wrapped, optimizer=optimizer, held_out=held_out)


def _compiled(model: nn.Module) -> nn.Module:
    """Only training is compiled: an evaluation gives the same bits to a stranger without it."""
    return cast(nn.Module, torch.compile(model))


def require_determinism() -> None:
    """Have torch compute the same bits again, on a GPU too, or refuse; for this process."""
    # Read when cuBLAS first computes; without it its own sums are not deterministic.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
