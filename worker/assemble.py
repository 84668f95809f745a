"""How a bare model becomes what is trained: its precision, its device, its ranks, its optimizer."""

import os
from typing import cast

import torch
from torch import nn

from service.contract.spec import JobSpec
from worker.activations import recompute_activations
from worker.build import build_optimizer
from worker.built import Built
from worker.cluster import Cluster
from worker.evaluation_sets import HeldOutSets
from worker.parallel import replicate, shard
from worker.precision import set_precision


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
