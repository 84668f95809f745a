"""The order of samples: every epoch is complete, and any step can be asked for at any time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.worker.data.sampler import global_indices, rank_slice, reserved_seed

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**63 - 1)


@given(batch_size=sizes, num_train=sizes, seed=seeds, num_epochs=st.integers(1, 3))
def test_each_epoch_visits_each_sample_exactly_once(batch_size, num_train, seed, num_epochs):
    wanted = num_epochs * num_train
    steps = range(-(-wanted // batch_size))
    visited = np.concatenate(
        [global_indices(s, batch_size=batch_size, num_train=num_train, seed=seed) for s in steps]
    )[:wanted]
    for epoch in range(num_epochs):
        numbers = visited[epoch * num_train : (epoch + 1) * num_train]
        first = epoch * num_train
        assert sorted(numbers) == list(range(first, first + num_train))


@given(step=st.integers(0, 1000), batch_size=sizes, num_train=sizes, seed=seeds)
def test_two_small_batches_are_one_large_batch(step, batch_size, num_train, seed):
    """The stream of samples does not depend on how it is cut, nor on what was asked before."""
    large = global_indices(step, batch_size=2 * batch_size, num_train=num_train, seed=seed)
    small = [
        global_indices(s, batch_size=batch_size, num_train=num_train, seed=seed)
        for s in (2 * step, 2 * step + 1)
    ]
    assert np.array_equal(large, np.concatenate(small))


@given(share=sizes, world_size=st.integers(1, 8))
def test_slices_are_equal_and_concatenate_to_the_whole(share, world_size):
    indices = np.arange(share * world_size)
    slices = [rank_slice(indices, rank=r, world_size=world_size) for r in range(world_size)]
    assert {len(part) for part in slices} == {share}
    assert np.array_equal(np.concatenate(slices), indices)


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(AssertionError, match="expected world_size to divide 5 samples, saw 2"):
        rank_slice(np.arange(5), rank=0, world_size=2)


def test_the_order_differs_by_seed_by_epoch_and_in_the_reserved_stream():
    def epoch(step, seed):
        return tuple(global_indices(step, batch_size=100, num_train=100, seed=seed) % 100)

    orders = {epoch(0, 7), epoch(1, 7), epoch(0, 8), epoch(0, reserved_seed(7))}
    assert len(orders) == 4


def test_the_order_is_pinned_for_ever():
    """A change here would silently break the resume of every stored training state."""
    indices = global_indices(1, batch_size=6, num_train=8, seed=2)
    assert indices.tolist() == PINNED


PINNED = [2, 7, 10, 15, 8, 9]
