"""Blocks of tensors: which rank writes which, seen on ranks that have no others."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from roadless.worker.checkpointing.shard_layout import (
    Slice,
    distributed_like,
    own_slice,
    slices_by_writer,
)

RANKS = 4


@pytest.fixture(params=range(RANKS))
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    dist.init_process_group("fake", rank=request.param, world_size=RANKS, store=FakeStore())
    yield request.param
    dist.destroy_process_group()


CASES: list[tuple[tuple[int, ...], tuple[int, ...], list[Any]]] = [
    ((7, 3), (4,), [Shard(0)]),
    ((2, 3), (4,), [Shard(0)]),
    ((3, 10), (4,), [Shard(1)]),
    ((5, 6), (2, 2), [Replicate(), Shard(0)]),
    ((5, 6, 3), (2, 2), [Shard(0), Shard(1)]),
    ((6,), (4,), [Replicate()]),
]


@pytest.mark.parametrize(("shape", "mesh_shape", "placements"), CASES, ids=str)
def test_blocks_make_up_the_whole_and_each_has_one_writer(
    rank: int, shape: tuple[int, ...], mesh_shape: tuple[int, ...], placements: list[Any]
) -> None:
    """And a rank's own block is where torch has put it."""
    mesh = init_device_mesh("cpu", mesh_shape)
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    here = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    mine = own_slice(here)
    assert torch.equal(whole[mine.within(Slice.whole(shape))], here.to_local())
    written = torch.zeros(shape, dtype=torch.int64)
    for writer, block in slices_by_writer(here).items():
        assert not block.is_empty
        written[block.within(Slice.whole(shape))] += 1
        if writer == rank:
            assert block == mine
    assert bool((written == 1).all())
    again = distributed_like(here.to_local(), here)
    assert (again.placements, again.shape) == (here.placements, here.shape)


def test_a_plain_tensor_is_whole_and_the_leads() -> None:
    tensor = torch.zeros(2, 3)
    assert slices_by_writer(tensor) == {0: Slice((0, 0), (2, 3))}
    assert own_slice(tensor) == Slice((0, 0), (2, 3))
    assert distributed_like(tensor, torch.ones(2, 3)) is tensor
    assert slices_by_writer(torch.zeros(())) == {0: Slice((), ())}


BLOCKS = st.integers(0, 3).flatmap(
    lambda dims: st.tuples(
        *[st.tuples(*[st.integers(0, 4)] * dims) for _ in range(4)],
    )
)


@given(BLOCKS)
def test_what_two_blocks_have_in_common_is_what_indexing_says(numbers: Any) -> None:
    a, b = (Slice(start, size) for start, size in (numbers[:2], numbers[2:]))
    shape = tuple(8 for _ in a.start)
    in_a, in_b = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    in_a[a.within(Slice.whole(shape))] = True
    in_b[b.within(Slice.whole(shape))] = True
    common = a.common(b)
    assert common.is_empty == (not bool((in_a & in_b).any()))
    if not common.is_empty:
        seen = torch.zeros(shape, dtype=torch.bool)
        seen[common.within(Slice.whole(shape))] = True
        assert torch.equal(seen, in_a & in_b)
        assert in_a[a.within(Slice.whole(shape))][common.within(a)].shape == common.size
