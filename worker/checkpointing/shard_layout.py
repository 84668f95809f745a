"""Which part of a tensor is where, and which rank writes it: shapes and placements, no data.

A plain tensor is whole, and the lead writes it. Of a distributed one, each rank holds a block; if
several ranks hold the same block, the first of them writes it.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import torch
from torch.distributed.tensor import DTensor

LEAD = 0


@dataclass(frozen=True)
class Slice:
    """A block of a tensor: where it starts and how long it is, by dimension."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Self:
        """All of a tensor of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def is_empty(self) -> bool:
        """Whether no element is in it."""
        return 0 in self.size

    def common(self, other: "Slice") -> "Slice":
        """The elements that are in both, which may be none."""
        start = tuple(map(max, self.start, other.start))
        ends = map(min, _ends(self), _ends(other))
        return Slice(
            start, tuple(max(0, end - first) for first, end in zip(start, ends, strict=True))
        )

    def within(self, other: "Slice") -> tuple[slice, ...]:
        """How to index a tensor that holds ``other`` to get this block."""
        pairs = zip(self.start, other.start, self.size, strict=True)
        return tuple(slice(mine - theirs, mine - theirs + size) for mine, theirs, size in pairs)


def own_slice(tensor: torch.Tensor) -> Slice:
    """Return which block of the whole this process holds in ``tensor``."""
    if not isinstance(tensor, DTensor):
        return Slice.whole(tuple(tensor.shape))
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "expected a rank of the tensor's mesh"
    return _block(tensor, tuple(coordinate))


def slices_by_writer(tensor: torch.Tensor) -> dict[int, Slice]:
    """Return the blocks that make up the whole, by the rank that writes each; none is empty."""
    if not isinstance(tensor, DTensor):
        return {LEAD: Slice.whole(tuple(tensor.shape))}
    ranks = tensor.device_mesh.mesh
    sides = [
        range(size) if placement.is_shard() else range(1)
        for size, placement in zip(ranks.shape, tensor.placements, strict=True)
    ]
    blocks = {int(ranks[place]): _block(tensor, place) for place in product(*sides)}
    return {rank: block for rank, block in blocks.items() if not block.is_empty}


def distributed_like(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this rank's part in the form of ``like``: distributed the same way, or as it is."""
    if not isinstance(like, DTensor):
        return part
    made: torch.Tensor = DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return made


def _block(tensor: DTensor, coordinate: tuple[Any, ...]) -> Slice:
    """The block at a coordinate of the mesh; blocks are cut as ``torch.chunk`` cuts."""
    start, size = [0] * tensor.dim(), list(tensor.shape)
    for mesh_dim, placement in enumerate(tensor.placements):
        if not placement.is_shard():
            continue
        dim: int = placement.dim  # type: ignore[attr-defined]  # of Shard
        block = -(-size[dim] // tensor.device_mesh.size(mesh_dim))
        skipped = min(block * int(coordinate[mesh_dim]), size[dim])
        start[dim] += skipped
        size[dim] = min(block, size[dim] - skipped)
    return Slice(tuple(start), tuple(size))


def _ends(block: Slice) -> tuple[int, ...]:
    return tuple(start + size for start, size in zip(block.start, block.size, strict=True))
