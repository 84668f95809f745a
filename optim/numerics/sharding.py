"""Where the elements of a distributed tensor are: this rank's part, and its place in the whole.

By the tensor's own words (``to_local``, ``placements``), so that nobody who trains on one device
waits for torch's distributed package to be imported.
"""

from typing import Any

import torch
from torch import Tensor

_CPU_BLOCK = 2**16
_DEVICE_BLOCK = 2**24


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a distributed tensor, which shares its memory; others as is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Cut a contiguous tensor into flat views that stay in a CPU's cache, or are small on a device.

    >>> [len(block) for block in blocks(torch.zeros(2, 50_000))]
    [65536, 34464]
    """
    return torch.split(tensor.view(-1), block_elements(tensor))


def block_elements(tensor: Tensor) -> int:
    """Return how many elements of a tensor stay in a CPU's cache, or are little on its device."""
    return _CPU_BLOCK if tensor.device.type == "cpu" else _DEVICE_BLOCK


def first_index(tensor: Tensor) -> int | None:
    """Return the index of the first local element in the whole tensor, if all others follow it."""
    if local(tensor).shape[1:] != tensor.shape[1:]:
        return None
    return _starts(tensor)[0] * tensor.shape[1:].numel() if tensor.dim() else 0


def whole(tensor: Tensor) -> Tensor:
    """Return all of a distributed tensor, gathered from its ranks; others as is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def part_of(tensor: Tensor, *, like: Any) -> Tensor:
    """Return a whole tensor, which every rank has, distributed as another one is; no exchange.

    ``like`` is replicated or sharded evenly in blocks (``Shard``), or no distributed tensor.
    """
    if not hasattr(like, "placements"):
        return tensor
    for dim, (start, size) in enumerate(zip(_starts(like), local(like).shape, strict=True)):
        tensor = tensor.narrow(dim, min(start, tensor.shape[dim] - size), size)
    distributed: Tensor = type(like).from_local(
        tensor.contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return distributed


def element_index(tensor: Tensor) -> Tensor:
    """Return of each local element its index in the whole tensor, flat, as int64.

    For tensors that are replicated or sharded evenly in blocks (``Shard``), on any mesh.

    >>> element_index(torch.zeros(2, 3))
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    part = local(tensor)
    index = torch.zeros(part.shape, dtype=torch.int64, device=part.device)
    for dim, start in enumerate(_starts(tensor)):
        stride = tensor.shape[dim + 1 :].numel()
        along = torch.arange(start, start + part.shape[dim], device=part.device) * stride
        index += along.view(-1, *[1] * (part.dim() - dim - 1))
    return index


def _starts(tensor: Any) -> list[int]:
    """Where the local part begins, by dimension."""
    starts, sizes = [0] * tensor.dim(), list(tensor.shape)
    for mesh_dim, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            mesh, dim = tensor.device_mesh, placement.dim
            block = -(-sizes[dim] // mesh.size(mesh_dim))
            skipped = min(block * mesh.get_local_rank(mesh_dim), sizes[dim])
            starts[dim] += skipped
            sizes[dim] = min(block, sizes[dim] - skipped)
    return starts
