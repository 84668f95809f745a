"""Retention keeps what the policy names and nothing that it does not."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from roadless.service.contract.checkpoint.retention import (
    STATES_KEPT,
    Stored,
    superfluous_evals,
    superfluous_states,
)
from roadless.service.contract.job.evaluation import CheckpointsSpec

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@st.composite
def stored(draw):
    steps = draw(st.lists(st.integers(0, 1000), unique=True, max_size=16))
    losses, ages = st.sampled_from([None, *range(8)]), st.integers(0, 1000)
    is_live = st.sampled_from([True, True, True, False])
    return [
        Stored(
            f"ckpt_{step}",
            step,
            draw(losses),
            stored_at=NOW - timedelta(seconds=draw(ages)),
            pinned=draw(st.booleans()),
            is_live=draw(is_live),
        )
        for step in steps
    ]


policies = st.builds(
    CheckpointsSpec,
    keep_last=st.integers(1, 4),
    keep_best=st.integers(0, 2),
    keep_every_steps=st.none() | st.integers(1, 50),
    max_age_seconds=st.none() | st.integers(1, 1000),
)


def without_age(policy):
    return policy.model_copy(update={"max_age_seconds": None})


def kept(checkpoints, policy):
    drop = superfluous_evals(checkpoints, policy, now=NOW)
    return [one for one in checkpoints if one.id not in drop]


def live(checkpoints):
    return sorted((one for one in checkpoints if one.is_live), key=lambda one: -one.step)


@given(stored(), policies)
def test_newest_best_and_pinned_stay(checkpoints, policy):
    policy = without_age(policy)
    ids = {one.id for one in kept(checkpoints, policy)}
    assert {one.id for one in live(checkpoints)[: policy.keep_last]} <= ids
    assert {one.id for one in checkpoints if one.pinned} <= ids
    scored = sorted(one.loss for one in live(checkpoints) if one.loss is not None)
    best = sorted(one.loss for one in live(checkpoints) if one.loss is not None and one.id in ids)
    assert best[: policy.keep_best] == scored[: policy.keep_best]


@given(stored(), policies)
def test_no_more_stay_than_asked_for(checkpoints, policy):
    policy = policy.model_copy(update={"keep_every_steps": None})
    pinned = sum(one.pinned for one in checkpoints)
    assert len(kept(checkpoints, policy)) <= policy.keep_last + policy.keep_best + pinned


@given(stored(), policies)
def test_multiples_stay_and_move_no_other(checkpoints, policy):
    """A checkpoint goes where it would go without the rule, unless its step is a multiple."""
    policy = without_age(policy)
    every = policy.keep_every_steps
    others = kept(checkpoints, policy.model_copy(update={"keep_every_steps": None}))
    multiples = [one for one in live(checkpoints) if every and one.step % every == 0]
    ids = {one.id for one in (*others, *multiples)}
    assert {one.id for one in kept(checkpoints, policy)} == ids


@given(stored(), policies)
def test_what_is_superseded_goes_unless_it_is_pinned(checkpoints, policy):
    assert [one for one in kept(checkpoints, policy) if not one.is_live and not one.pinned] == []


@given(stored(), policies, st.integers(1, 1000))
def test_age_takes_the_old_ones_but_for_the_newest_and_the_pinned(checkpoints, policy, seconds):
    """And moves no other: what is young stays where it would stay without the rule."""
    aged = kept(checkpoints, policy.model_copy(update={"max_age_seconds": seconds}))
    newest = [one.id for one in live(checkpoints)[:1]]
    expected = [
        one
        for one in kept(checkpoints, without_age(policy))
        if NOW - one.stored_at <= timedelta(seconds=seconds) or one.pinned or one.id in newest
    ]
    assert aged == expected


@given(stored(), policies)
def test_a_second_look_at_once_drops_nothing_more(checkpoints, policy):
    once = kept(checkpoints, policy)
    assert kept(once, policy) == once


@given(stored())
def test_the_newest_training_states_and_the_pinned_stay(checkpoints):
    drop = superfluous_states(checkpoints)
    stays = [one for one in checkpoints if one.id not in drop]
    newest = sorted(checkpoints, key=lambda one: (one.is_live, one.step))[-STATES_KEPT:]
    assert {one.id for one in stays} == {
        one.id for one in checkpoints if one in newest or one.pinned
    }


def test_a_state_that_is_superseded_stays_as_long_as_there_are_not_two_others():
    """It is the last hope of a job whose other state does not load either."""
    states = [
        Stored(f"ckpt_{step}", step, None, stored_at=NOW, pinned=False, is_live=step != 20)
        for step in (10, 20, 15)
    ]
    assert superfluous_states(states[:2]) == set()
    assert superfluous_states(states) == {"ckpt_20"}


def test_the_best_stays_between_newer_and_older_ones():
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0}
    checkpoints = [
        Stored(f"ckpt_{step}", step, loss, stored_at=NOW, pinned=False, is_live=True)
        for step, loss in losses.items()
    ]
    policy = CheckpointsSpec(keep_last=1, keep_best=1, max_age_seconds=1)
    assert [one.step for one in kept(checkpoints, policy)] == [20, 40]
    at_its_last = superfluous_evals(checkpoints, policy, now=NOW + timedelta(seconds=1))
    assert at_its_last == {"ckpt_10", "ckpt_30"}
    older = superfluous_evals(checkpoints, policy, now=NOW + timedelta(seconds=1.1))
    assert older == {"ckpt_10", "ckpt_20", "ckpt_30"}


@pytest.mark.parametrize("seconds", [0, -1, 0.5, 2e9, float("nan"), "a day"])
def test_an_age_that_is_none_is_refused(seconds):
    with pytest.raises(ValidationError, match="max_age_seconds"):
        CheckpointsSpec(max_age_seconds=seconds)


def test_a_specification_of_an_earlier_release_has_no_age():
    assert CheckpointsSpec.model_validate({"keep_last": 3, "keep_best": 1}).max_age_seconds is None
