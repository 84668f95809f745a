"""This rank's part of a distributed tensor, and its place in the whole.

Uses only the tensor's own attributes (``to_local``, ``placements``), so that training on one device
does not import torch's distributed package.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_CPU_BLOCK = 2**16
_DEVICE_BLOCK = 2**24

_PLAIN = frozenset({Tensor, Parameter})

#: Indices along a dimension, in order, as ranges that do not touch.
_Runs = tuple[range, ...]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a distributed tensor, sharing its memory; others unchanged."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return plain tensors, and those of each mesh, in lists of their own, each in its order."""
    if _PLAIN.issuperset(map(type, tensors)):  # the usual case, without a look at each
        return [list(tensors)]
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(kinds.values())


def blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Split a contiguous tensor into flat views that fit a CPU's cache, or are small on a device.

    >>> [len(block) for block in blocks(torch.zeros(2, 50_000))]
    [65536, 34464]
    """
    return torch.split(tensor.view(-1), block_elements(tensor))


def block_elements(tensor: Tensor) -> int:
    """Return how many elements of a tensor fit in a CPU's cache, or are few for its device."""
    return _CPU_BLOCK if tensor.device.type == "cpu" else _DEVICE_BLOCK


def first_index(tensor: Tensor) -> int | None:
    """Return the index of the first local element in the whole tensor, if all others follow it."""
    part = local(tensor)
    if part is tensor or not tensor.dim() or not part.numel():
        return 0
    if part.shape[1:] != tensor.shape[1:]:
        return None
    runs = _runs(tensor)[0]
    return runs[0].start * tensor.shape[1:].numel() if len(runs) == 1 else None


def whole(tensor: Tensor) -> Tensor:
    """Return all of a distributed tensor, gathered from its ranks; others unchanged."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def part_of(tensor: Tensor, *, like: Any) -> Tensor:
    """Distribute a whole tensor, which every rank has, like another one; no communication.

    ``like`` is replicated, sharded in blocks or in strides, or not distributed.
    """
    if not hasattr(like, "placements"):
        return tensor
    for dim, runs in enumerate(_runs(like)):
        parts = [tensor.narrow(dim, run.start, len(run)) for run in runs]
        tensor = torch.cat(parts, dim) if parts else tensor.narrow(dim, 0, 0)
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
    """Return each local element's flat index in the whole tensor, as int64.

    For tensors that are replicated, or sharded in blocks or in strides, on any mesh.

    >>> element_index(torch.zeros(2, 3))
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    part = local(tensor)
    index = torch.zeros(part.shape, dtype=torch.int64, device=part.device)
    for dim, runs in enumerate(_runs(tensor)):
        own = [torch.arange(r.start, r.stop, device=part.device) for r in runs or (range(0),)]
        along = torch.cat(own) * tensor.shape[dim + 1 :].numel()
        index += along.view(-1, *[1] * (part.dim() - dim - 1))
    return index


def _runs(tensor: Any) -> list[_Runs]:
    """Return what the local part has of each dimension."""
    found: list[_Runs] = [(range(size),) for size in tensor.shape]
    for mesh_dim, placement in enumerate(getattr(tensor, "placements", ())):
        # Not by is_shard(), which is false for the strided shards of FSDP2 over tensor parallelism
        # (torch 2.13): the part of a part of this dimension that another mesh dimension has cut
        # first. Read from left to right, it is the same part of each of ``split_factor`` pieces.
        dim = getattr(placement, "dim", None)
        if dim is not None:
            mesh = tensor.device_mesh
            found[dim] = part_of_runs(
                found[dim],
                index=mesh.get_local_rank(mesh_dim),
                num_parts=mesh.size(mesh_dim),
                num_pieces=getattr(placement, "split_factor", 1),
            )
    return found


def part_of_runs(runs: _Runs, *, index: int, num_parts: int, num_pieces: int = 1) -> _Runs:
    """Return one of the parts that indices are divided into, as torch divides a dimension.

    Args:
        runs: the indices.
        index: of the part.
        num_parts: among which all are divided; as by ``torch.chunk``, the last may have less or
            nothing.
        num_pieces: into which the indices are cut beforehand, each to be divided by itself.

    >>> part_of_runs((range(10),), index=1, num_parts=4)
    (range(3, 6),)
    >>> part_of_runs((range(10),), index=1, num_parts=2, num_pieces=2)
    (range(3, 5), range(8, 10))
    """
    pieces = [_block(runs, index=i, num_blocks=num_pieces) for i in range(num_pieces)]
    parts = [_block(piece, index=index, num_blocks=num_parts) for piece in pieces]
    return _joined(run for part in parts for run in part)


def _block(runs: _Runs, *, index: int, num_blocks: int) -> _Runs:
    size = -(-sum(map(len, runs)) // num_blocks)
    start, stop, found = index * size, (index + 1) * size, []
    for run in runs:
        found.append(run[max(start, 0) : max(stop, 0)])
        start, stop = start - len(run), stop - len(run)
    return _joined(found)


def _joined(runs: Iterable[range]) -> _Runs:
    """Drop empty runs, and make one of two that follow each other."""
    joined: list[range] = []
    for run in runs:
        if joined and run and joined[-1].stop == run.start:
            joined[-1] = range(joined[-1].start, run.stop)
        elif run:
            joined.append(run)
    return tuple(joined)
