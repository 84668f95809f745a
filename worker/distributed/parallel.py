"""One model over several ranks: a replica on each, a shard on each, or replicas made of shards."""

from collections import Counter

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from roadless.service.contract.job.training import ParallelismSpec
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.model.base import blocks_of


def shard(model: nn.Module, *, cluster: Cluster, parallelism: ParallelismSpec) -> None:
    """Leave this rank its shard of every parameter, in place; the same model on all ranks.

    Parameters move to the device unit by unit, so the whole model need not fit there. Optimizers
    are made afterwards, since parameters become other tensors.
    """
    mesh = _mesh(cluster, parallelism)
    for unit in _units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: nn.Module) -> DistributedDataParallel:
    """Return the replica that adds up gradients; ``model`` may be a compiled one."""
    # Without find_unused_parameters DDP rebuilds its buckets after the first iteration, which
    # changes the order of sums: a resumed run of three ranks would differ in the last bit.
    return DistributedDataParallel(model, find_unused_parameters=True)


def _mesh(cluster: Cluster, parallelism: ParallelismSpec) -> DeviceMesh:
    device = cluster.device.type
    if parallelism.replicas == 1:
        return init_device_mesh(device, (cluster.world_size,), mesh_dim_names=("shard",))
    shape = (parallelism.replicas, cluster.world_size // parallelism.replicas)
    return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))


def _units(model: nn.Module) -> list[nn.Module]:
    """What is gathered together: blocks; and modules of another dtype, since a unit has one."""
    return [*_of_another_dtype(model), *blocks_of(model)]


def _of_another_dtype(model: nn.Module) -> list[nn.Module]:
    counted = Counter(parameter.dtype for parameter in model.parameters())
    usual = max(counted, key=lambda dtype: counted[dtype]) if counted else None
    return [
        module
        for module in model.modules()
        if any(parameter.dtype != usual for parameter in module.parameters(recurse=False))
    ]
