"""A rank among its peers: the process group and its facts as one frozen value."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from worker.interface import use_interface_towards
from worker.launcher import RankLaunch
from worker.peers import Store
from worker.rendezvous import wait_for_listener

#: How long a collective waits for a peer: longer than any ``hang_seconds``, so that the watchdog,
#: which can say where a rank hangs, comes first. Agents kill the peers of a dead rank long before.
COLLECTIVE_SECONDS = 90_000.0


@dataclass(frozen=True)
class Cluster:
    """Which of how many ranks this is, and where it computes."""

    rank: int
    world_size: int
    device: torch.device
    store: Store | None = None  #: text by key, seen by all ranks; None for a rank alone

    @property
    def is_lead(self) -> bool:
        """Whether this rank speaks for all: it reports curves and saves checkpoints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add a float64 CPU tensor up over all ranks; every rank gets the same bits."""
        if self.world_size == 1:
            return values
        shared = values.to(self.device)
        dist.all_reduce(shared)
        return shared.cpu()


def join(launch: RankLaunch) -> Cluster:
    """Meet the peers: NCCL between GPUs, gloo between CPUs, nothing for a rank alone."""
    torch.set_num_threads(launch.threads)
    has_gpu = bool(launch.gpu_ids)
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    store = _meet(launch, has_gpu=has_gpu) if launch.world_size > 1 else None
    return Cluster(launch.rank, launch.world_size, device, store)


def _meet(launch: RankLaunch, *, has_gpu: bool) -> Store:
    """Open the process group; return the store that the ranks met by, for words of their own."""
    use_interface_towards(launch.master_addr)
    if launch.rank > 0:
        wait_for_listener(launch.master_addr, launch.master_port)
    timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch hides it from mypy
        launch.master_addr,
        launch.master_port,
        launch.world_size,
        is_master=launch.rank == 0,
        timeout=timeout,
    )
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
    )
    ours: Store = dist.PrefixStore("ranks", store)  # type: ignore[attr-defined]  # likewise
    return ours
