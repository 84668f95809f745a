"""Eval checkpoints that need not wait for their upload, and those that must."""

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.checkpoint.retention import Stored, superfluous_evals
from roadless.service.contract.job.evaluation import CheckpointsSpec
from roadless.worker.reporting.staged_checkpoint import Waiting, superfluous

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICIES = st.builds(
    CheckpointsSpec,
    keep_last=st.integers(1, 3),
    keep_best=st.integers(0, 2),
    keep_every_steps=st.none() | st.integers(1, 5),
)


@st.composite
def known(draw: st.DrawFn) -> list[Waiting]:
    losses = st.none() | st.floats(0, 10) | st.just(float("nan"))
    return [
        Waiting(
            id=f"ckpt_{step}",
            step=step,
            loss=draw(losses),
            is_pinned=draw(st.booleans()),
            is_validated=draw(st.booleans()),
        )
        for step in draw(st.lists(st.integers(0, 30), unique=True, max_size=8))
    ]


def dropped_by_the_service(every: list[Waiting], policy: CheckpointsSpec) -> set[str]:
    stored = [
        Stored(
            one.id, one.step, one.loss if one.loss == one.loss else None, NOW, one.is_pinned, True
        )
        for one in every
    ]
    return superfluous_evals(stored, policy, now=NOW)


@given(mine=known(), others=known(), policy=POLICIES)
def test_what_need_not_wait_would_be_deleted_at_once(
    mine: list[Waiting], others: list[Waiting], policy: CheckpointsSpec
) -> None:
    """Whatever else the service has, if what waits turns out to be good."""
    others = [replace(one, id=f"other_{one.step}") for one in others]
    assert superfluous(mine, policy) <= dropped_by_the_service([*mine, *others], policy)


@given(every=known(), policy=POLICIES)
def test_one_that_was_looked_at_goes_for_no_other_that_was_not(
    every: list[Waiting], policy: CheckpointsSpec
) -> None:
    sure = [one for one in every if one.is_validated]
    drop = superfluous(every, policy)
    assert {one.id for one in sure} & drop == superfluous(sure, policy)


@given(every=known(), policy=POLICIES)
def test_no_more_wait_than_the_job_keeps_twice(
    every: list[Waiting], policy: CheckpointsSpec
) -> None:
    """Once those that were looked at, once those that were not; asked-for and spaced ones apart."""
    drop = superfluous(every, policy)
    stay = [one for one in every if one.id not in drop and not one.is_pinned]
    step = policy.keep_every_steps
    stay = [one for one in stay if step is None or one.step % step]
    assert len(stay) <= 2 * (policy.keep_last + policy.keep_best)
