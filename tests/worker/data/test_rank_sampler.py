"""A rank's batches are the same bits at the same kind of address, one by one or many at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_bench import bits

from roadless.worker.data.base import ALIGNMENT_BYTES, UNCOUNTED, Batch, Indices
from roadless.worker.data.builtin.digits import Digits
from roadless.worker.data.sampler import Sampler


class Numbers:
    """Samples of ``width`` float32, so that most batches of them do not begin at a multiple."""

    num_train = 50

    def __init__(self, width: int) -> None:
        self._width = width

    def train_batch(self, indices: Indices) -> Batch:
        numbers = torch.from_numpy(indices % self.num_train)
        inputs = numbers[:, None] + torch.arange(self._width) / self._width
        return Batch(inputs.float(), numbers, has_uncounted=False)


@given(
    width=st.integers(1, 40),
    share=st.integers(1, 9),
    world_size=st.integers(1, 3),
    first=st.integers(0, 30),
    count=st.integers(1, 20),
)
def test_many_at_once_are_what_each_is_by_itself(
    width: int, share: int, world_size: int, first: int, count: int
) -> None:
    data, steps = Numbers(width), range(first, first + count)
    for rank in range(world_size):
        sampler = Sampler(data, share * world_size, seed=3, rank=rank, world_size=world_size)
        together = sampler(steps)
        alone = [sampler(range(step, step + 1))[0] for step in steps]
        assert contents(together) == contents(alone)
        assert all(is_aligned(batch) and not batch.has_uncounted for batch in together)


def test_ranks_share_each_batch_out() -> None:
    data = Digits()
    whole = Sampler(data, 6, seed=3, rank=0, world_size=1)(range(40, 43))
    parts = [Sampler(data, 6, seed=3, rank=rank, world_size=3)(range(40, 43)) for rank in range(3)]
    for step in range(3):
        inputs = torch.cat([part[step].inputs for part in parts])
        assert torch.equal(inputs, whole[step].inputs)


@pytest.mark.parametrize("offset", [0, 1, 8, 16])
def test_a_batch_is_copied_unless_it_begins_where_a_new_one_would(offset: int) -> None:
    targets = torch.from_numpy(np.full(40, UNCOUNTED))
    batch = Batch(torch.arange(40.0)[offset:], targets[offset:])
    aligned = batch.aligned()
    assert contents([aligned]) == contents([batch])
    assert is_aligned(aligned)
    assert aligned.has_uncounted
    assert (aligned is batch) == is_aligned(batch)


def contents(batches: list[Batch]) -> list[object]:
    return [bits([batch.inputs, batch.targets]) for batch in batches]


def is_aligned(batch: Batch) -> bool:
    return not any(t.data_ptr() % ALIGNMENT_BYTES for t in (batch.inputs, batch.targets))
