"""A rank without peers; ranks with peers are in tests/worker/rank."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from worker_drills import make_launch

from roadless.worker.distributed.process_group import Cluster, join


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
