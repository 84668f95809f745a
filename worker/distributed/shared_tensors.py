"""What all ranks hold alike: the weights that they start from, and buffers, as the lead has them.

Replicas and shards need it for different reasons: torch's replicas take the lead's weights
themselves, while its shards would be cut from models that differ without a word (FSDP2 of torch
2.13 neither compares nor sends them); and each rank's forward passes change its own buffers.
"""

import zlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from roadless.optim.buffers import persistent_buffers
from roadless.worker.distributed.process_group import Cluster
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import named_tensors

#: By how much a table that each rank computes for itself may differ from kind to kind of CPU, as a
#: part of its largest number.
_SAME_TABLE = 1e-3
_LEAD = 0


def share_start(model: nn.Module, *, cluster: Cluster) -> None:
    """Have every rank start from the lead's parameters and buffers; ``model`` is whole, on the CPU.

    They mostly are the same, as functions of the job's seed, and then nothing is sent but hashes.
    Raises ModelInvalid where ranks have made other modules, or buffers that no checkpoint keeps and
    that differ, since a process that loads the model would have others again.
    """
    if cluster.world_size == 1:
        return
    named = dict(named_tensors(model))
    names_hash = zlib.crc32(repr([(n, t.shape, t.dtype) for n, t in named.items()]).encode())
    if not all(_are_equal([names_hash], cluster)):
        raise ModelInvalid("expected the same modules on every rank, saw others than on rank 0")
    are_equal = _are_equal([_hash(tensor) for tensor in named.values()], cluster)
    unkept = dict(model.named_buffers()).keys() - set(kept_buffers(model))
    for (name, tensor), is_equal in zip(named.items(), are_equal, strict=True):
        if not is_equal:
            _take_lead(name, tensor, is_kept=name not in unkept, cluster=cluster)


def kept_buffers(model: nn.Module) -> list[str]:
    """Return the names of the buffers that a checkpoint keeps; the others are tables, as a rule."""
    return [name for _, name in persistent_buffers(model)]


def share_buffers(buffers: Iterable[torch.Tensor], *, cluster: Cluster) -> None:
    """Give every rank the lead's buffers, which its own forward passes have changed."""
    if cluster.world_size == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in buffers:
        by_dtype.setdefault(buffer.dtype, []).append(buffer)
    for of_dtype in by_dtype.values():
        _share(of_dtype, cluster=cluster)


@torch.no_grad()
def _share(buffers: Sequence[torch.Tensor], *, cluster: Cluster) -> None:
    """Of one dtype: as bytes, so that all dtypes can be sent."""
    flat = torch.cat([buffer.detach().reshape(-1) for buffer in buffers]).to(cluster.device)
    dist.broadcast(flat.view(torch.uint8), _LEAD)
    if cluster.rank == _LEAD:
        return
    parts = torch.split(flat, [buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view(buffer.shape))


@torch.no_grad()
def _take_lead(name: str, tensor: torch.Tensor, *, is_kept: bool, cluster: Cluster) -> None:
    mine = tensor.detach().clone()
    _share([tensor], cluster=cluster)
    is_far = not is_kept and not _is_near(mine, tensor)
    if not all(_are_equal([int(is_far)], cluster)):
        raise ModelInvalid(
            f"expected the same buffer {name} on every rank, saw other numbers than on rank 0: "
            "register it with persistent=True, or draw it from the generators of torch, numpy or "
            "random, which the job's seed sets"
        )


def _is_near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(
        torch.view_as_real(one).double() if one.is_complex() else one.double(),
        torch.view_as_real(other).double() if other.is_complex() else other.double(),
        rtol=0,
        atol=_SAME_TABLE * float(other.abs().max()) if other.numel() else 0.0,
        equal_nan=True,
    )


def _are_equal(numbers: Sequence[int], cluster: Cluster) -> list[bool]:
    """Return for each number whether all ranks have the lead's."""
    table = torch.zeros(cluster.world_size, len(numbers), dtype=torch.float64)
    table[cluster.rank] = torch.tensor(numbers, dtype=torch.float64)  # below 2**32: exact
    table = cluster.sum(table)
    equal: list[bool] = (table == table[_LEAD]).all(dim=0).tolist()
    return equal


def _hash(tensor: torch.Tensor) -> int:
    flat = tensor.detach().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data)
