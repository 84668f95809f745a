"""What the ranks of the distributed tests do. Each name runs the same few steps in every world.

Results go to files of a folder, by name; `test_distributed` compares them. `main` is run
in a process of its own, so that torch is imported once and ranks are forked from one that has no
threads yet.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as multiprocessing
from optim_makes import NAMES, PLUS, make
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from roadless.optim import at_average, averaged_point

#: Steps before the checkpoint, and after it.
BEFORE, AFTER = 5, 3
BATCH = 8


@dataclass(frozen=True)
class End:
    """Where a run ended, as whole tensors."""

    y: list[Tensor]
    x: list[Tensor]
    #: At x, after each step.
    losses: list[float]


def model() -> nn.Sequential:
    """Small; of five rows the last of four ranks has none.

    Square, as a gradient without full rank has no one eigenbasis, and SOAP then depends on the last
    bit of it, in one process, too.
    """
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()


def batches(first: int, num: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(BATCH, 5, generator=generator, dtype=torch.float64) for _ in range(20)]
    return drawn[first : first + num]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Convex in the output and never 0, for Polyak's rule."""
    return ((model(batch) - 1) ** 2).mean() + 0.1


def optimizer_for(name: str, model: nn.Module) -> Any:
    more = {"c_warmup": 2} if name == PLUS else {"lr": 0.05}
    return make(name, model.parameters(), weight_decay=0.01, **more)


def train(
    model: nn.Module,
    optimizer: Any,
    data: list[Tensor],
    *,
    part: Callable[[Tensor], Tensor] = lambda batch: batch,
    mean: Callable[[float], float] = lambda loss: loss,
) -> list[float]:
    """Step once per batch, of which this rank computes its part; return the losses at x."""
    losses = []
    for batch in data:

        def closure(batch: Tensor = batch) -> float:
            optimizer.zero_grad()
            loss = loss_of(model, part(batch))
            loss.backward()
            return mean(loss.item())

        optimizer.step(closure)
        with torch.no_grad():
            # So that a gathered copy of y is at hand, which the block must not use.
            loss_of(model, batch)
            with at_average(optimizer, model=model):
                losses.append(loss_of(model, batch).item())
    return losses


def end(optimizer: Any, losses: list[float]) -> End:
    x = averaged_point(optimizer)
    return End([whole(p.detach()) for p in x], [whole(v) for v in x.values()], losses)


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def alone(name: str) -> tuple[End, End]:
    """One process, before and after the place of the checkpoint."""
    bare = model()
    optimizer = optimizer_for(name, bare)
    first = end(optimizer, train(bare, optimizer, batches(0, BEFORE)))
    return first, end(optimizer, train(bare, optimizer, batches(BEFORE, AFTER)))


def two_ranks(rank: int, folder: str) -> None:
    """DDP and FSDP2 for every name, with a checkpoint of the latter."""
    join(rank, 2, folder)
    for name in NAMES:
        note(Path(folder, f"ddp-{name}-{rank}.pt"), lambda: in_replicas(name, rank))  # noqa: B023
        note(Path(folder, f"fsdp-{name}-{rank}.pt"), lambda: in_shards(name, rank, folder))  # noqa: B023
    dist.destroy_process_group()


def four_ranks(rank: int, folder: str) -> None:
    """Go on from the checkpoint of two; and begin anew, sharded in two ways at once."""
    join(rank, 4, folder)
    for name in NAMES:
        note(Path(folder, f"four-{name}-{rank}.pt"), lambda: resumed(name, rank, 4, folder))  # noqa: B023
        note(Path(folder, f"meshes-{name}-{rank}.pt"), lambda: on_two_meshes(name))  # noqa: B023
    dist.destroy_process_group()


def join(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world}"
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=store)


def note(file: Path, work: Callable[[], Any]) -> None:
    """Save what comes of it, an error included: all ranks of a name fail alike."""
    try:
        torch.save(work(), file)
    except (Exception, CheckpointException) as error:
        torch.save(f"{type(error).__name__}: {traceback.format_exc()}", file)


def in_replicas(name: str, rank: int) -> End:
    replica = DistributedDataParallel(model())
    optimizer = optimizer_for(name, replica)
    losses = train(
        replica, optimizer, batches(0, BEFORE), part=lambda b: b.chunk(2)[rank], mean=mean_of_all
    )
    return end(optimizer, losses)


def mean_of_all(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def in_shards(name: str, rank: int, folder: str) -> dict[str, Any]:
    """Run to the end; and again from the checkpoint, in the same world."""
    shards, optimizer = sharded(name, 2)
    data = batches(0, BEFORE)
    losses = train(shards, optimizer, data, part=lambda b: b.chunk(2)[rank])
    at_checkpoint = end(optimizer, losses)
    dcp.save(state_of(shards, optimizer), checkpoint_id=f"{folder}/{name}")
    state = {key: whole(value) for key, value in flat(state_of(shards, optimizer)).items()}
    losses = train(shards, optimizer, batches(BEFORE, AFTER), part=lambda b: b.chunk(2)[rank])
    return {
        "at_checkpoint": at_checkpoint,
        "state": state,
        "through": end(optimizer, losses),
        "resumed": resumed(name, rank, 2, folder),
    }


def resumed(name: str, rank: int, world: int, folder: str) -> End:
    shards, optimizer = sharded(name, world)
    load(shards, optimizer, f"{folder}/{name}")
    losses = train(shards, optimizer, batches(BEFORE, AFTER), part=lambda b: b.chunk(world)[rank])
    return end(optimizer, losses)


def sharded(name: str, world: int) -> tuple[nn.Module, Any]:
    mesh = init_device_mesh("cpu", (world,))
    bare = model()
    fully_shard(bare[0], mesh=mesh)
    fully_shard(bare, mesh=mesh)
    return bare, optimizer_for(name, bare)


def on_two_meshes(name: str) -> End:
    """Shards of tensor-parallel layers, as FSDP2 makes them, every rank with the whole batch.

    The five rows of the first layer are dealt out unevenly, twice (``_StridedShard``); the second
    is cut along both dimensions; and its bias is on the tensor-parallel mesh alone.
    """
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    bare = model()
    plan = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    parallelize_module(bare, mesh["tensor"], plan)
    fully_shard(bare[0], mesh=mesh["shard"])
    fully_shard(bare, mesh=mesh["shard"], ignored_params={bare[2].bias})
    optimizer = optimizer_for(name, bare)
    return end(optimizer, train(bare, optimizer, batches(0, BEFORE)))


def state_of(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def load(model: nn.Module, optimizer: Any, checkpoint: str, *, alone: bool = False) -> None:
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=checkpoint, no_dist=alone)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def flat(tree: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of nested dicts, by path; groups hold numbers, which are left out."""
    if isinstance(tree, Tensor):
        return {path: tree}
    if not isinstance(tree, dict):
        return {}
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        found |= flat(value, f"{path}/{key}")
    return found


def main(folder: str) -> None:
    """A world of two, then one of four, as starting processes is what takes long."""
    torch.set_num_threads(1)
    for work, world in ((two_ranks, 2), (four_ranks, 4)):
        multiprocessing.start_processes(work, (folder,), nprocs=world, start_method="fork")
