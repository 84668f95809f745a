"""One model over several ranks: a replica on each, a shard on each, or replicas made of shards."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from roadless.service.contract.job.training import ParallelismSpec
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.distributed.shared_tensors import kept_buffers, share_buffers
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import blocks_of
from roadless.worker.model.faults import is_of_machine, told


def shard(model: nn.Module, *, cluster: Cluster, parallelism: ParallelismSpec) -> None:
    """Keep only this rank's shard of every parameter, in place; all ranks have the same model.

    Parameters move to the device unit by unit, so the whole model need not fit there. Optimizers
    must be made afterwards, since parameters become other tensors. Raises ModelInvalid for a model
    that torch cannot shard.
    """
    mesh, units = _mesh(cluster, parallelism), _units(model)
    unit_at = _unit_by_path(model, set(units))
    _require_shape(model)
    _require_one_dtype(model, unit_at)
    _require_unshared_units(model, unit_at)
    if names := kept_buffers(model):
        # torch's replicas take the lead's buffers before each pass; its shards keep their own.
        model.register_forward_pre_hook(partial(_take_buffers, cluster, names))
    try:
        for unit in (*units, model):
            fully_shard(unit, mesh=mesh)
    except Exception as error:  # only looks at the model: no rank speaks to another here
        if is_of_machine(error):
            raise
        raise ModelInvalid(
            f"expected a model that torch can shard, saw {told(error)}; use strategy ddp"
        ) from error


def reshard(model: nn.Module) -> None:
    """Have a sharded model hold its shards, and no whole that a pass has gathered of them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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
    """What is gathered together: blocks; and modules of another dtype, since a unit has one.

    Each once, wherever it stands, and after the units within it: torch (2.13) shards what a unit
    holds when it comes to it, and refuses shards of shards.
    """
    units = dict.fromkeys([*_of_another_dtype(model), *blocks_of(model)])
    units.pop(model, None)
    return sorted(units, key=lambda unit: len(list(unit.modules())))  # what is within has fewer


def _require_shape(model: nn.Module) -> None:
    """FSDP2 of torch 2.13 has no shards of scalars, and fails in a step over what is empty."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise ModelInvalid(
                f"expected parameters of at least one dimension with strategy fsdp, saw the scalar "
                f"{name}; give it the shape (1,), or use strategy ddp"
            )
        if not parameter.numel():
            raise ModelInvalid(
                f"expected parameters with elements with strategy fsdp, saw {name} of shape "
                f"{tuple(parameter.shape)}; use strategy ddp"
            )


def _require_one_dtype(model: nn.Module, unit_at: Mapping[str, nn.Module]) -> None:
    """FSDP2 of torch 2.13 gathers a unit's own at once, and fails over two dtypes in a pass."""
    dtypes: dict[nn.Module, set[torch.dtype]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            dtypes.setdefault(_unit_of(name, unit_at), set()).add(parameter.dtype)
    for unit, found in dtypes.items():
        if len(found) > 1:
            raise ModelInvalid(
                f"expected parameters of one dtype in {type(unit).__name__} with strategy fsdp, "
                f"saw {', '.join(sorted(map(str, found)))}; give those of each dtype a module of "
                "their own, or use strategy ddp"
            )


def _require_unshared_units(model: nn.Module, unit_at: Mapping[str, nn.Module]) -> None:
    """FSDP2 of torch 2.13 shards a parameter of two units one by one, as if it were two."""
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    shared = [
        " = ".join(names)
        for names in places.values()
        if len({_unit_of(name, unit_at) for name in names}) > 1
    ]
    if shared:
        raise ModelInvalid(
            "expected parameters that are shared within one block, saw some shared between blocks, "
            f"which torch shards one by one, as if they were not: {'; '.join(sorted(shared))}; use "
            "strategy ddp"
        )


def _unit_by_path(model: nn.Module, units: Collection[nn.Module]) -> dict[str, nn.Module]:
    """Return the innermost unit of the module at each path; parents come first."""
    found = {"": model}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = module if module in units else _unit_of(path, found)
    return found


def _unit_of(name: str, unit_at: Mapping[str, nn.Module]) -> nn.Module:
    """``name``: of a parameter, or the path of a module in the unit or below it."""
    return unit_at[name.rpartition(".")[0]]


@torch.no_grad()
def _take_buffers(cluster: Cluster, names: Sequence[str], model: nn.Module, _inputs: Any) -> None:
    if model.training:
        share_buffers(map(model.get_buffer, names), cluster=cluster)


def _of_another_dtype(model: nn.Module) -> list[nn.Module]:
    counted = Counter(parameter.dtype for parameter in model.parameters())
    usual = max(counted, key=lambda dtype: counted[dtype]) if counted else None
    return [
        module
        for module in model.modules()
        if any(parameter.dtype != usual for parameter in module.parameters(recurse=False))
    ]
