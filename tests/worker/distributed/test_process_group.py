"""A rank without peers; ranks with peers are in tests/worker/rank."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from worker_drills import make_launch

from roadless.worker.distributed.process_group import (
    LOOPBACK,
    Cluster,
    interface_towards,
    join,
    use_interface_towards,
)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_rank_alone_meets_no_one_and_takes_its_threads(tmp_path: Path) -> None:
    """Nobody listens on the launch's port, so any attempt to meet would fail."""
    other = 1 if torch.get_num_threads() != 1 else 2
    cluster = join(make_launch(tmp_path, threads=other))
    assert cluster == Cluster(rank=0, world_size=1, device=torch.device("cpu"))
    assert torch.get_num_threads() == other
    assert not torch.distributed.is_initialized()


def test_a_sum_over_one_rank_is_the_value() -> None:
    values = torch.tensor([1.5, float("nan")], dtype=torch.float64)
    assert Cluster(0, 1, torch.device("cpu")).sum(values) is values


def test_rank_0_leads() -> None:
    leads = [Cluster(rank, 3, torch.device("cpu")).is_lead for rank in range(3)]
    assert leads == [True, False, False]


VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def own_address() -> str | None:
    """One of this machine that is not loopback's, if it has any."""
    for addresses in psutil.net_if_addrs().values():
        for found in addresses:
            if found.family is socket.AF_INET and not found.address.startswith("127."):
                return found.address
    return None


def test_ranks_of_one_node_use_loopback_whatever_connects_the_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "eth9")
    use_interface_towards(LOOPBACK)
    assert {os.environ[name] for name in VARIABLES} == {interface_towards(LOOPBACK)}


@pytest.mark.skipif(own_address() is None, reason="this machine has no network but loopback")
@pytest.mark.parametrize("chosen", [None, "eth9"])
def test_ranks_of_several_nodes_use_the_interface_between_them_or_the_operators(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    address = own_address()
    assert address is not None
    for name in VARIABLES:
        monkeypatch.setenv(name, chosen or "")
        if chosen is None:
            monkeypatch.delenv(name)
    use_interface_towards(address)
    expected = chosen or interface_towards(address)
    assert {os.environ.get(name) for name in VARIABLES} == {expected}
    assert expected != interface_towards(LOOPBACK)
