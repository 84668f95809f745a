"""Two and four real processes: replicas, shards and checkpoints give what one process gives.

In float64, so that what differs is the order in which gradients of the parts are added.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optim_ranks
import pytest
import torch
from optim_makes import NAMES
from optim_ranks import (
    AFTER,
    BEFORE,
    End,
    alone,
    batches,
    end,
    flat,
    load,
    model,
    optimizer_for,
    state_of,
    train,
)
from optim_runs import distance
from torch import Tensor

pytestmark = [
    pytest.mark.parametrize("name", NAMES),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

#: Sums in another order, carried through a few steps; eigenbases magnify what differs.
TOLERANCE, SOAP_TOLERANCE = 1e-14, 1e-11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("ranks")
    program = "import sys, optim_ranks; optim_ranks.main(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(where)],
        env=os.environ | {"PYTHONPATH": str(Path(optim_ranks.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return where


def result(folder: Path, kind: str, name: str, rank: int = 0) -> Any:
    found = torch.load(folder / f"{kind}-{name}-{rank}.pt", weights_only=False)
    assert not isinstance(found, str), found
    return found


def assert_near(seen: End, expected: End, name: str) -> None:
    tolerance = SOAP_TOLERANCE if "SOAP" in name else TOLERANCE
    assert worst(seen.y, expected.y) <= tolerance
    assert worst(seen.x, expected.x) <= tolerance
    assert seen.losses == pytest.approx(expected.losses, rel=tolerance)


def assert_equal(seen: End, expected: End) -> None:
    assert all(map(torch.equal, seen.y, expected.y))
    assert all(map(torch.equal, seen.x, expected.x))
    assert seen.losses == expected.losses


def worst(seen: list[Tensor], expected: list[Tensor]) -> float:
    return max(distance(a, b) for a, b in zip(seen, expected, strict=True))


def test_replicas_give_what_one_process_gives(folder: Path, name: str) -> None:
    assert_near(result(folder, "ddp", name), alone(name)[0], name)


def test_replicas_stay_equal_bit_for_bit(folder: Path, name: str) -> None:
    assert_equal(result(folder, "ddp", name, 0), result(folder, "ddp", name, 1))


def test_shards_give_what_one_process_gives(folder: Path, name: str) -> None:
    """Losses at x included, with training between: nobody sees a gathered copy that is old."""
    seen = result(folder, "fsdp", name)
    before, after = alone(name)
    assert_near(seen["at_checkpoint"], before, name)
    assert_near(seen["through"], after, name)


def test_going_on_in_an_equal_world_is_bitwise_the_same(folder: Path, name: str) -> None:
    seen = result(folder, "fsdp", name)
    assert_equal(seen["resumed"], seen["through"])


def test_going_on_with_four_gives_the_same(folder: Path, name: str) -> None:
    assert_near(result(folder, "four", name), alone(name)[1], name)


def test_shards_of_tensor_parallel_layers_give_what_one_process_gives(
    folder: Path, name: str
) -> None:
    """On two meshes in one group, with uneven strided shards, and shards of both dimensions."""
    for rank in range(4):
        assert_near(result(folder, "meshes", name, rank), alone(name)[0], name)


def test_one_process_loads_every_bit_and_goes_on(folder: Path, name: str) -> None:
    bare = model()
    optimizer = optimizer_for(name, bare)
    load(bare, optimizer, str(folder / name), alone=True)
    saved, loaded = result(folder, "fsdp", name)["state"], flat(state_of(bare, optimizer))
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    losses = train(bare, optimizer, batches(BEFORE, AFTER))
    assert_near(end(optimizer, losses), alone(name)[1], name)
