"""Resumed to the exact sample: what a step trains on is a function of data, seed and step alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import Node, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roadless.worker.data.base import Batch, DataSet
from roadless.worker.data.prefetch import Prefetch
from roadless.worker.data.sampler import Sampler, global_indices

BATCH = 12  # which 1, 2 and 3 ranks share evenly
NUM_STEPS = 30  # over some epochs of the small sets below


def kinds(node: Node) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = {"x": [float(i) for i in range(70)], "y": [i % 4 for i in range(70)]}
    texts = {"t": [f"text number {i}" for i in range(60)]}
    yield "csv", {"target": "y", "path": write_table(node, "rows.csv", rows)}
    yield "parquet", {"target": "y", "path": write_table(node, "rows.parquet", rows)}
    np.savez(node.root / "a.npz", x=np.random.default_rng(0).random((70, 1, 2, 2)), y=rows["y"])
    yield "npz", {"target": "y", "path": f"{node.root}/a.npz", "standardise": True}
    yield "jsonl", {"text": "t", "path": write_table(node, "texts.jsonl", texts)}
    yield "bytes", {"path": node.write("a.bin", bytes(range(256)) * 3)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> list[tuple[DataSet, DataSet]]:
    """Each set as one node prepared it, and as another did."""
    made = []
    for number in range(2):
        node = Node.at(tmp_path_factory.mktemp(f"node-{number}"))
        made.append(
            [
                node.build(
                    {"format": format, **fields},
                    task="classification" if "target" in fields else "causal_lm",
                    context=5,
                )
                for format, fields in kinds(node)
            ]
        )
    return list(zip(*made, strict=True))


def batches(data: DataSet, *, first: int, last: int, rank: int, world_size: int) -> list[Batch]:
    """What a rank of an attempt that begins at step ``first`` trains on, made ahead as it does."""
    prefetch = Prefetch(Sampler(data, BATCH, seed=5, rank=rank, world_size=world_size))
    made = [prefetch(step) for step in range(first, last)]
    prefetch.close()
    return made


def whole(parts: list[list[Batch]]) -> list[tuple[bytes, bytes]]:
    """The global batch of each step, from the parts of all ranks."""
    return [
        tuple(
            torch.cat([getattr(part, name) for part in step]).numpy().tobytes()
            for name in ("inputs", "targets")
        )
        for step in zip(*parts, strict=True)
    ]


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 3])), min_size=1), st.data())
def test_attempts_of_any_size_see_what_one_uninterrupted_rank_sees(sets, attempts, data):
    """Each attempt goes on at another world size, and now and then on another node."""
    pair = data.draw(st.sampled_from(sets))
    expected = whole([batches(pair[0], first=0, last=NUM_STEPS, rank=0, world_size=1)])
    step = 0
    for length, world_size in attempts:
        last = min(step + length, NUM_STEPS)
        own = data.draw(st.sampled_from(pair))
        seen = whole(
            [
                batches(own, first=step, last=last, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
        )
        assert seen == expected[step:last]
        step = last


def test_two_nodes_prepare_the_same_from_the_same_content(sets):
    for one, other in sets:
        assert one.description == other.description


def test_every_epoch_visits_every_sample_once(sets):
    for data, _ in sets:
        seen = np.concatenate(
            [
                global_indices(step, batch_size=BATCH, num_train=data.num_train, seed=5)
                for step in range(-(-2 * data.num_train // BATCH))
            ]
        )
        for epoch in range(2):
            numbers = seen[epoch * data.num_train : (epoch + 1) * data.num_train]
            assert sorted(numbers % data.num_train) == list(range(data.num_train))
