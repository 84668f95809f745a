"""Steps in blocks: what is kept exactly, and how near the bound stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.optim.schedules.by_name import rates
from roadless.optim.theory.bounds import bound
from roadless.service.theory import steps as module
from roadless.service.theory.steps import MAX_BLOCKS, Steps, block_size, blocks_of

rows = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        *(
            st.lists(st.floats(low, 10), min_size=n, max_size=n).map(np.array)
            for low in (0.001, 0.001)
        )
    )
)


@given(row=rows, cut=st.integers(0, 40), horizon=st.integers(1, 40))
def test_short_jobs_are_kept_step_by_step(row, cut, horizon):
    """Whatever parts they come in."""
    eta, norms = row
    parts = [Steps(eta[:cut], norms[:cut]), Steps(eta[cut:], norms[cut:])]
    blocks = blocks_of(parts, num_steps=eta.size)
    seen = blocks.until(min(horizon, eta.size))
    assert seen.eta == pytest.approx(eta[:horizon])
    assert seen.grad_norms == pytest.approx(norms[:horizon])


@given(row=rows, limit=st.integers(1, 20), horizon=st.integers(1, 40), times=st.integers(1, 5))
def test_sums_of_rates_and_noise_are_kept_in_blocks(row, limit, horizon, times):
    """Of whole blocks; in coarser ones too."""
    eta, norms = row
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_BLOCKS", limit)
        blocks = blocks_of([Steps(eta, norms)], num_steps=eta.size).coarser(times)
    assert blocks.lengths.sum() == eta.size
    whole = min(horizon, eta.size) // blocks.size * blocks.size or eta.size
    seen = blocks.until(whole)
    assert seen.eta.sum() == pytest.approx(eta[:whole].sum())
    assert ((seen.eta * seen.grad_norms) ** 2).sum() <= (
        ((eta * norms)[:whole] ** 2).sum() * (1 + 1e-9)
    )
    assert blocks.noise.sum() == pytest.approx(((eta * norms) ** 2).sum())
    assert blocks.grad_norm() == pytest.approx(np.sqrt(np.mean(norms**2)))


def test_there_are_never_more_blocks_than_the_limit():
    for num_steps in (1, MAX_BLOCKS, MAX_BLOCKS + 1, 10**6, 10**9):
        assert -(-num_steps // block_size(num_steps)) <= MAX_BLOCKS
    assert block_size(MAX_BLOCKS) == 1


@pytest.mark.parametrize("name", ["constant", "wsd", "cosine", "linear", "one_minus_sqrt"])
@pytest.mark.parametrize("horizon", [20_000, 61_003, 150_000])
def test_the_bound_of_a_long_job_is_near_the_exact_one(name, horizon):
    """Within a thousandth, also inside of a block and where rates fall to almost nothing."""
    num_steps = 150_000
    eta = rates(name, steps=num_steps, base_lr=0.01)
    norms = 1 + 3 * np.exp(-np.arange(num_steps) / 20_000)
    blocks = blocks_of([Steps(eta, norms)], num_steps=num_steps)
    seen = blocks.until(horizon)
    assert blocks.size > 1
    assert seen.eta.size < 3 * MAX_BLOCKS
    exact = bound(eta[:horizon], norms[:horizon], D=3.0)
    assert bound(seen.eta, seen.grad_norms, D=3.0) == pytest.approx(exact, rel=1e-3)


@given(row=rows, more=st.integers(0, 60), limit=st.integers(1, 20))
def test_going_on_adds_steps_and_changes_none(row, more, limit):
    eta, norms = row
    num_steps = eta.size + more
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_BLOCKS", limit)
        blocks = blocks_of([Steps(eta, norms)], num_steps=eta.size)
    ahead = np.full(-(-num_steps // blocks.size), 0.5)
    longer = blocks.going_on(num_steps, eta=ahead, grad_norm=2.0)
    assert longer.eta.sum() == pytest.approx(eta.sum() + 0.5 * more)
    assert longer.noise.sum() == pytest.approx(((eta * norms) ** 2).sum() + more)
    full = eta.size // blocks.size
    assert longer.eta[:full] == pytest.approx(blocks.eta[:full])


def test_the_last_share_of_the_norms():
    blocks = blocks_of([Steps(np.ones(10), np.array([9.0] * 9 + [2.0]))], num_steps=10)
    assert blocks.grad_norm(last_share=0.1) == pytest.approx(2)
    assert blocks.grad_norm(last_share=0.001) == pytest.approx(2)
