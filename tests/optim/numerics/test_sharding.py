"""Where the elements of a distributed tensor are, seen on ranks that have no others."""

from collections.abc import Iterator
from itertools import pairwise, product

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from roadless.optim.numerics.precision import keep_low_part, wide
from roadless.optim.numerics.rounding import stochastically_round_into, stochastically_rounded
from roadless.optim.numerics.sharding import (
    blocks,
    by_kind,
    element_index,
    first_index,
    local,
    part_of,
    part_of_runs,
)


@pytest.fixture(params=range(4))
def _rank(request: pytest.FixtureRequest) -> Iterator[None]:
    dist.init_process_group("fake", rank=request.param, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


def strided(dim: int, split_factor: int = 2) -> object:
    """What FSDP2 makes of a dimension that tensor parallelism has cut before."""
    return _StridedShard(dim, split_factor=split_factor)


def cases() -> list[tuple[tuple[int, ...], tuple[int, ...], list[object]]]:
    return [
        ((7, 3), (4,), [Shard(0)]),
        ((2, 3), (4,), [Shard(0)]),
        ((3, 10), (4,), [Shard(1)]),
        ((5, 6, 3), (2, 2), [Shard(0), Shard(1)]),
        ((9, 2), (2, 2), [Shard(0), Shard(0)]),
        ((5, 6), (2, 2), [Replicate(), Shard(0)]),
        ((6,), (4,), [Replicate()]),
        ((8, 3), (2, 2), [strided(0), Shard(0)]),
        ((7, 3), (2, 2), [strided(0), Shard(0)]),
        ((3,), (2, 2), [strided(0), Shard(0)]),
        ((3, 9), (2, 2), [strided(1), Shard(1)]),
        ((9, 2), (2, 2), [strided(0), Replicate()]),
        ((11, 2), (1, 4), [Replicate(), strided(0, split_factor=3)]),
        ((5, 2), (4,), [strided(0, split_factor=4)]),
    ]


@pytest.mark.usefixtures("_rank")
@pytest.mark.parametrize(("shape", "mesh_shape", "placements"), cases(), ids=str)
def test_indices_are_those_of_the_whole(
    shape: tuple[int, ...], mesh_shape: tuple[int, ...], placements: list[object]
) -> None:
    """A tensor of its own indices, distributed, says which are here."""
    mesh = init_device_mesh("cpu", mesh_shape)
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    here = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    assert torch.equal(element_index(here), here.to_local())
    first, own = first_index(here), here.to_local().flatten()
    is_one_run = bool((own.diff() == 1).all())
    assert (
        first is not None or not is_one_run or any(p.dim for p in placements if hasattr(p, "dim"))
    )
    if first is not None and own.numel():
        assert is_one_run
        assert own[0] == first


@pytest.mark.usefixtures("_rank")
@pytest.mark.parametrize(("shape", "mesh_shape", "placements"), cases(), ids=str)
def test_a_whole_that_all_ranks_have_is_distributed_like_another_tensor(
    shape: tuple[int, ...], mesh_shape: tuple[int, ...], placements: list[object]
) -> None:
    """As SOAP's direction is, whose gradient was gathered."""
    mesh = init_device_mesh("cpu", mesh_shape)
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    like = distribute_tensor(torch.zeros(shape), mesh, placements, src_data_rank=None)
    expected = distribute_tensor(whole, mesh, placements, src_data_rank=None)
    seen = part_of(whole, like=like)
    assert seen.placements == expected.placements
    assert (seen.shape, seen.stride()) == (expected.shape, expected.stride())
    assert torch.equal(local(seen), local(expected))


@pytest.mark.usefixtures("_rank")
@pytest.mark.parametrize(
    ("mesh_shape", "placements"),
    [
        ((4,), [Shard(0)]),
        ((4,), [Shard(1)]),
        ((2, 2), [strided(0), Shard(0)]),
        ((2, 2), [strided(1), Shard(1)]),
        ((2, 2), [strided(0), Replicate()]),
        ((2, 2), [Shard(0), Shard(1)]),
    ],
    ids=str,
)
def test_a_shard_is_rounded_as_it_is_in_the_whole(
    mesh_shape: tuple[int, ...], placements: list[object]
) -> None:
    mesh = init_device_mesh("cpu", mesh_shape)
    values = torch.randn(10, 11, generator=torch.Generator().manual_seed(0))
    expected = stochastically_rounded(values, torch.bfloat16, key=9)
    point, parameter, rounded = (
        distribute_tensor(whole, mesh, placements, src_data_rank=None)
        for whole in (values, torch.zeros(10, 11, dtype=torch.bfloat16), expected)
    )
    stochastically_round_into(parameter, point, key=9)
    assert torch.equal(local(parameter), local(rounded))
    state: dict[str, torch.Tensor] = {}
    keep_low_part(point, parameter, state)
    assert state["low"].placements == parameter.placements
    assert torch.allclose(local(wide(parameter, state)), local(point), rtol=2**-22, atol=0)


def test_a_tensor_on_one_device_is_its_own_local_part() -> None:
    tensor = torch.zeros(2, 3)
    assert local(tensor) is tensor
    assert first_index(tensor) == first_index(torch.zeros(())) == 0
    assert element_index(torch.zeros(())).item() == 0


def test_blocks_share_memory_and_cover_everything() -> None:
    tensor = torch.zeros(3, 70_000)
    for i, block in enumerate(blocks(tensor)):
        block.fill_(i + 1)
    assert bool((tensor > 0).all())
    assert len(blocks(torch.zeros(0))) == 1


def test_parts_of_any_split_are_all_indices_once_and_in_order() -> None:
    for size, num_parts, num_pieces in product(range(12), range(1, 5), range(1, 5)):
        parts = [
            part_of_runs((range(size),), index=i, num_parts=num_parts, num_pieces=num_pieces)
            for i in range(num_parts)
        ]
        found = [[i for run in part for i in run] for part in parts]
        assert sorted(i for part in found for i in part) == list(range(size))
        assert all(part == sorted(part) for part in found)
        assert all(a.stop < b.start for part in parts for a, b in pairwise(part))


def test_tensors_of_a_kind_stand_together_in_their_order() -> None:
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        one, two = (init_device_mesh("cpu", shape) for shape in ((4,), (2, 2)))
        plain = [torch.zeros(2), torch.nn.Parameter(torch.zeros(3))]
        on_one = [distribute_tensor(torch.zeros(4), one, [p]) for p in (Shard(0), Replicate())]
        on_two = distribute_tensor(torch.zeros(4), two, [Shard(0), Replicate()])
        mixed = [plain[0], on_one[0], on_two, plain[1], on_one[1]]
        found = [[id(t) for t in kind] for kind in by_kind(mixed)]
        assert found == [[id(t) for t in kind] for kind in (plain, on_one, [on_two])]
        assert by_kind([]) == [[]]
    finally:
        dist.destroy_process_group()
