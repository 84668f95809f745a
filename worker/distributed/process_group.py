"""A rank among its peers: how it meets them, and the facts of the group as one frozen value."""

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import psutil
import torch
import torch.distributed as dist

from roadless.worker.distributed.store_peers import Store
from roadless.worker.rank_launch import RankLaunch

#: torch's store retries by itself, but only after half a second or more.
_TRY_AGAIN_SECONDS: Final = 0.005
#: After this it may: rank 0 is slow, or its host cannot be reached.
PATIENCE_SECONDS: Final = 10.0
#: Where ranks of one node meet.
LOOPBACK: Final = "127.0.0.1"
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
#: How long a collective waits for a peer: longer than any ``hang_seconds``, so that the watchdog,
#: which can say where a rank hangs, comes first. Agents kill the peers of a dead rank long before.
COLLECTIVE_SECONDS = 90_000.0


@dataclass(frozen=True)
class Cluster:
    """This rank, how many there are, and where it computes."""

    rank: int
    world_size: int
    device: torch.device
    store: Store | None = None  #: text by key, seen by all ranks; None for a single rank

    @property
    def is_lead(self) -> bool:
        """Whether this rank speaks for all: it reports curves and saves checkpoints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a float64 CPU tensor over all ranks; every rank gets the same bits."""
        if self.world_size == 1:
            return values
        shared = values.to(self.device)
        dist.all_reduce(shared)
        return shared.cpu()


def join(launch: RankLaunch) -> Cluster:
    """Meet the peers: NCCL between GPUs, gloo between CPUs, nothing for a single rank."""
    torch.set_num_threads(launch.threads)
    has_gpu = bool(launch.gpu_ids)
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    store = _meet(launch, has_gpu=has_gpu) if launch.world_size > 1 else None
    return Cluster(launch.rank, launch.world_size, device, store)


def wait_for_listener(address: str, port: int) -> bool:
    """Return once something listens there; False where nothing does in time, or ever will."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up_at:
        try:
            socket.create_connection((address, port), timeout=PATIENCE_SECONDS).close()
            return True
        except ConnectionRefusedError:
            time.sleep(_TRY_AGAIN_SECONDS)
        except OSError:  # the store says what is wrong
            return False
    return False


def use_interface_towards(address: str) -> None:
    """Make gloo and NCCL listen on the interface to ``address``.

    Between nodes an operator may choose another one; ranks of one node need none but loopback.
    """
    name = interface_towards(address)
    is_loopback = name == interface_towards(LOOPBACK)
    for variable in _VARIABLES:
        if name is not None and (is_loopback or variable not in os.environ):
            os.environ[variable] = name


def interface_towards(address: str) -> str | None:
    """Return the name of the interface that packets to ``address`` leave through, if there is one.

    Nothing is sent: connecting a datagram socket only looks the route up.
    """
    family, _, _, _, target = socket.getaddrinfo(address, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return None
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == own for found in addresses):
            return name
    return None


def _listen(launch: RankLaunch) -> int:
    """Open the rendezvous where the peers look for it; return the socket's file descriptor.

    The store has no credential, and by itself (torch 2.13) it listens on every interface.
    """
    family, _, _, _, address = socket.getaddrinfo(
        launch.master_addr, launch.master_port, type=socket.SOCK_STREAM
    )[0]
    return socket.create_server(address, family=family).detach()


def _meet(launch: RankLaunch, *, has_gpu: bool) -> Store:
    """Open the process group; return the store of the rendezvous, for the ranks' own messages."""
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
        master_listen_fd=_listen(launch) if launch.rank == 0 else None,
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
