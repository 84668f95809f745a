"""Where training stands, and when a budget is used up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.job.budget import BudgetSpec
from roadless.worker import position
from roadless.worker.position import Position, Stopwatch, is_used_up

USED = {"step": 10, "samples": 80, "tokens": 640, "wall_seconds": 2.5, "gpu_seconds": 5.0}
LIMITS = dict(
    zip(
        USED, ("max_steps", "max_samples", "max_tokens", "max_seconds", "max_gpu_seconds"),
        strict=True,
    )
)  # fmt: skip


def test_a_step_counts_itself_and_what_it_consumed() -> None:
    start = Position(step=3, samples=30, tokens=300, wall_seconds=1.5, gpu_seconds=3.0)
    after = start.after_step(samples=4, tokens=40)
    assert after == Position(step=4, samples=34, tokens=340, wall_seconds=1.5, gpu_seconds=3.0)


@given(used=st.sampled_from(list(USED)), share=st.sampled_from([0.5, 1.0, 1.5]))
def test_a_budget_is_used_up_when_its_limit_is_reached(used: str, share: float) -> None:
    limit = type(USED[used])(USED[used] * share)
    budget = BudgetSpec.model_validate({LIMITS[used]: limit})
    assert is_used_up(budget, Position(**USED)) == (share <= 1)


def test_the_first_of_several_limits_ends() -> None:
    budget = BudgetSpec(max_steps=10, max_seconds=1000.0, max_tokens=10**9)
    assert is_used_up(budget, Position(**USED))
    assert not is_used_up(budget, Position(**USED | {"step": 9}))


def test_without_a_budget_there_is_no_end() -> None:
    assert not is_used_up(None, Position(step=2**62, wall_seconds=1e12))


def test_seconds_go_on_where_the_last_attempt_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(position.time, "monotonic", lambda: now[0])
    stopwatch = Stopwatch(Position(wall_seconds=20.0, gpu_seconds=80.0), gpus=4)
    now[0] += 2.5
    assert stopwatch.stamp(Position(step=7)) == Position(
        step=7, wall_seconds=22.5, gpu_seconds=90.0
    )
