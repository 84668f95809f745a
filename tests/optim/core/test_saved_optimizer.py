"""Through torch's distributed checkpoint and back, in all its forms, a run goes on bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_travels import ALL, FLAT, Pair, assert_alike, assert_go_on_alike, one_process
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

pytestmark = pytest.mark.filterwarnings("ignore")

EVERY = pytest.mark.parametrize("name", sorted(ALL))
#: Saved and loaded with these; torch itself refuses a parameter without a state where it is strict.
WAYS: dict[str, tuple[StateDictOptions, StateDictOptions]] = {
    "flattened": (FLAT, FLAT),
    "flattened, on the CPU": (
        StateDictOptions(flatten_optimizer_state_dict=True, cpu_offload=True),
        FLAT,
    ),
    "by name": (StateDictOptions(), StateDictOptions(strict=False)),
    "whole": (
        StateDictOptions(full_state_dict=True, cpu_offload=True),
        StateDictOptions(full_state_dict=True, strict=False),
    ),
    "whole, from one rank": (
        StateDictOptions(full_state_dict=True),
        StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False),
    ),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


@EVERY
@EVERY_WAY
def test_a_run_goes_on_and_a_layer_that_never_had_a_gradient_starts(name: str, way: str) -> None:
    save, load = WAYS[way]
    source, target = Pair(ALL[name]).train(0, 4), Pair(ALL[name])
    with one_process():
        target.load(source, source.saved(save), load)
    assert_go_on_alike(target, source, first=4)


@EVERY
@EVERY_WAY
def test_a_layer_that_came_late_stays_as_late(name: str, way: str) -> None:
    """And into an optimizer whose state has been read before."""
    save, load = WAYS[way]
    source, target = Pair(ALL[name]).train(0, 3), Pair(ALL[name]).read()
    source.train(3, 2, is_all_used=True)
    with one_process():
        target.load(source, source.saved(save), load)
    assert_go_on_alike(target, source, first=5)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_go_on(name: str, dtype: torch.dtype) -> None:
    source, target = Pair(ALL[name], dtype=dtype).train(0, 4), Pair(ALL[name], dtype=dtype)
    assert_go_on_alike(target.load(source, source.saved(FLAT), FLAT), source, first=4)


@EVERY
def test_a_state_read_at_x_goes_on_in_an_optimizer_at_x(name: str) -> None:
    source, target = Pair(ALL[name]).train(0, 4), Pair(ALL[name])
    for pair in (source, target):
        pair.optimizer.eval()
    target.load(source, source.saved(FLAT), FLAT)
    assert_alike(target, source)
    for pair in (source, target):
        pair.optimizer.train()
    assert_go_on_alike(target, source, first=4)


@EVERY
def test_a_state_read_at_x_brings_an_optimizer_at_y_to_x(name: str) -> None:
    """y is not among the names that torch asks for then, and follows from x up to rounding."""
    source, target = Pair(ALL[name]).train(0, 4), Pair(ALL[name])
    source.optimizer.eval()
    target.load(source, source.saved(FLAT), FLAT)
    assert_alike(target, source)
    for pair in (source, target):
        pair.optimizer.train()
        pair.train(4, 2)
    for a, b in zip(target.points(), source.points(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@EVERY
def test_a_run_goes_back_to_an_earlier_step(name: str) -> None:
    """Into the optimizer that went further."""
    pair = Pair(ALL[name]).train(0, 2, is_all_used=True)
    early = Pair(ALL[name])
    early.load(pair, pair.saved(FLAT), FLAT)
    saved = pair.saved(FLAT)
    pair.train(2, 3, is_all_used=True)
    pair.optimizer.zero_grad()
    assert_go_on_alike(pair.load(early, saved, FLAT), early, first=2)


@EVERY
def test_a_folder_of_torch_is_read_back(name: str, tmp_path: Any) -> None:
    source, target = Pair(ALL[name]).train(0, 4, is_all_used=True), Pair(ALL[name])
    with one_process():
        checkpoint.save({"optimizer": source.saved()}, checkpoint_id=tmp_path)
        place = {"optimizer": target.saved()}
        checkpoint.load(place, checkpoint_id=tmp_path)
        target.model.load_state_dict(source.model.state_dict())
        set_optimizer_state_dict(target.model, target.optimizer, place["optimizer"])
    assert_go_on_alike(target, source, first=4)


@EVERY
@pytest.mark.parametrize("way", ["flattened", "by name", "whole, from one rank"])
def test_sharded_parameters_go_on(name: str, way: str) -> None:
    save, load = WAYS[way]
    if "(Rprop)" in name or "(Adafactor)" in name:
        pytest.skip("torch 2.13's Rprop and Adafactor take no distributed tensors")
    with one_process():
        source, target, plain = (Pair(ALL[name]) for _ in range(3))
        for pair in (source, target):
            _shard(pair, ALL[name])
        target.read()
        source.train(0, 3)
        target.load(source, source.saved(save), load)
        for pair in (source, target, plain.train(0, 3)):
            pair.train(3, 2, is_all_used=True)
        for a, b, c in zip(source.points(), target.points(), plain.points(), strict=True):
            assert torch.equal(a.full_tensor(), b.full_tensor())
            torch.testing.assert_close(a.full_tensor(), c, rtol=1e-5, atol=1e-6)


def _shard(pair: Pair, make: Callable[[Any], Any]) -> None:
    mesh = init_device_mesh("cpu", (1,))
    for layer in pair.model.values():
        fully_shard(layer, mesh=mesh)
    pair.optimizer = make(pair.model.parameters())
