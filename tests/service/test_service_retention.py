"""Retention keeps what the policy names and nothing that it does not."""

from hypothesis import given
from hypothesis import strategies as st

from service.checkpoints.retention import STATES_KEPT, Stored, superfluous_evals, superfluous_states


@st.composite
def stored(draw):
    steps = draw(st.lists(st.integers(0, 1000), unique=True, max_size=12))
    losses = st.none() | st.floats(0, 10)
    return [Stored(f"ckpt_{s}", s, draw(losses), draw(st.booleans())) for s in steps]


@given(stored(), st.integers(1, 4), st.integers(0, 4))
def test_newest_best_and_requested_stay(checkpoints, keep_last, keep_best):
    drop = superfluous_evals(
        checkpoints, keep_last=keep_last, keep_best=keep_best, keep_every_steps=None
    )
    kept = [one for one in checkpoints if one.id not in drop]
    assert {one.id for one in sorted(checkpoints, key=lambda o: -o.step)[:keep_last]} <= {
        one.id for one in kept
    }
    assert not [one for one in checkpoints if one.requested and one.id in drop]
    scored = sorted(one.loss for one in checkpoints if one.loss is not None)[:keep_best]
    assert sorted(one.loss for one in kept if one.loss is not None)[: len(scored)] == scored


@given(stored(), st.integers(1, 4), st.integers(0, 4))
def test_no_more_stay_than_asked_for(checkpoints, keep_last, keep_best):
    drop = superfluous_evals(
        checkpoints, keep_last=keep_last, keep_best=keep_best, keep_every_steps=None
    )
    requested = sum(one.requested for one in checkpoints)
    assert len(checkpoints) - len(drop) <= keep_last + keep_best + requested


@given(stored(), st.integers(1, 50), st.integers(1, 4))
def test_multiples_stay_and_move_no_other(checkpoints, every, keep_last):
    """A checkpoint goes where it would go without the rule, unless its step is a multiple."""
    rule = {"keep_last": keep_last, "keep_best": 1}
    drop = superfluous_evals(checkpoints, **rule, keep_every_steps=every)
    others = superfluous_evals(checkpoints, **rule, keep_every_steps=None)
    multiples = {one.id for one in checkpoints if one.step % every == 0}
    assert drop == others - multiples


@given(stored())
def test_the_newest_training_states_stay(checkpoints):
    drop = superfluous_states(checkpoints)
    kept = [one.step for one in checkpoints if one.id not in drop]
    assert sorted(kept) == sorted(one.step for one in checkpoints)[-STATES_KEPT:]
