"""Which steps a plan evaluates: laws of the pure part, and the loop that obeys it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_bench import Bench, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.job.evaluation import CheckpointsSpec, EvaluationSpec
from roadless.service.contract.states import Desired
from roadless.worker import position
from roadless.worker.position import Position
from roadless.worker.reporting.outbox import Heard
from roadless.worker.reporting.staged_checkpoint import Staged
from roadless.worker.training.cadence import by_seconds, geometric_steps, steps_of_share


def evaluated(bench: Bench) -> list[int]:
    bench.training.run()
    return [point.step for point in bench.reporter.evals]


# ---- by share -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_passes", "steps"),
    [
        (0, 1),
        (1, 1),
        (128, 1),
        (129, 2),
        (257, 5),
        (1280, 10),
        (1281, 20),
        (4000, 50),
        (10**8, 10**6),
    ],
)
def test_steps_of_a_share_are_round_numbers(num_passes: int, steps: int) -> None:
    """A step of 64 samples costs as much as 128 that are evaluated, which is all with share 1."""
    assert steps_of_share(1.0, batch_size=64, num_passes=num_passes) == steps


@given(
    share=st.floats(1e-6, 1.0),
    batch_size=st.integers(1, 10**6),
    num_passes=st.integers(1, 10**12),
)
def test_evaluations_cost_no_more_than_their_share_and_not_far_less(
    share: float, batch_size: int, num_passes: int
) -> None:
    steps = steps_of_share(share, batch_size=batch_size, num_passes=num_passes)
    cost = num_passes / 2 / (steps * batch_size)
    assert cost <= share * (1 + 1e-9)
    assert steps == 1 or cost >= share / 2.5 * (1 - 1e-9)


def test_the_loop_evaluates_early_and_then_as_often_as_the_share_allows(tmp_path: Path) -> None:
    """Of 40 samples, each half of a trained one, 5 % allow one evaluation in 50 steps of 8."""
    plan = {"every_steps": None, "share": 0.05}
    brief = make_brief(evaluation=plan, budget={"max_steps": 104})
    assert evaluated(Bench(brief, tmp_path)) == [10, 50, 100, 104]


def test_batch_statistics_and_a_look_at_y_count_as_cost(tmp_path: Path) -> None:
    plan = {"every_steps": None, "share": 0.05, "at_y": True}
    convnet = {"kind": "preset", "name": "convnet", "width": 2}
    bench = Bench(make_brief(evaluation=plan, model=convnet), tmp_path)
    assert bench.evaluations.num_passes() == 2 * 40 + 2 * (2 * 20)


def test_a_resumed_run_evaluates_the_steps_that_its_share_gave_it(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "evaluation": {"every_steps": None, "share": 0.5},
        "budget": {"max_steps": 12},
    }
    whole = evaluated(Bench(make_brief(**changes), tmp_path / "whole"))
    first = Bench(make_brief(**changes), tmp_path / "1", script={6: Heard(Desired.PAUSE)})
    before = evaluated(first)
    second = Bench(make_brief(**changes), tmp_path / "2", resume=first.last_state)
    assert whole == [5, 10, 12]
    assert sorted({*before, *evaluated(second)} - {before[-1]}) == whole


# ---- geometric ----------------------------------------------------------------------------------


def test_geometric_steps_are_those_of_the_example() -> None:
    assert sorted(geometric_steps(10, factor=2.0))[:5] == [10, 20, 40, 80, 160]
    assert sorted(geometric_steps(1, factor=1.5))[:7] == [1, 2, 3, 4, 6, 9, 14]


@given(first=st.integers(1, 2**31), factor=st.floats(1.01, 1000))
def test_geometric_steps_grow_by_their_factor_and_are_few(first: int, factor: float) -> None:
    """Each is the factor times the one before within a step, so there are at most thousands."""
    steps = sorted(geometric_steps(first, factor=factor))
    assert steps[0] == first
    assert len(steps) < 4000
    for before, after in itertools.pairwise(steps):
        assert after > before
        assert after == before + 1 or abs(after - before * factor) <= 0.5


def test_the_loop_evaluates_geometric_steps_and_the_end(tmp_path: Path) -> None:
    plan = {"every_steps": None, "geometric": {"first": 1, "factor": 2}}
    assert evaluated(Bench(make_brief(evaluation=plan, budget={"max_steps": 9}), tmp_path)) == [
        *[1, 2, 4, 8],
        9,
    ]


def test_a_resumed_run_evaluates_the_geometric_steps_of_an_undisturbed_one(tmp_path: Path) -> None:
    plan = {"every_steps": None, "geometric": {"first": 2, "factor": 1.5}}
    changes: dict[str, Any] = {"evaluation": plan, "budget": {"max_steps": 11}}
    whole = evaluated(Bench(make_brief(**changes), tmp_path / "whole"))
    first = Bench(make_brief(**changes), tmp_path / "1", script={3: Heard(Desired.PAUSE)})
    before = evaluated(first)
    second = Bench(make_brief(**changes), tmp_path / "2", resume=first.last_state)
    assert (whole, before) == ([2, 3, 4, 6, 9, 11], [2, 3, 4])
    assert before + evaluated(second) == whole


# ---- by seconds ---------------------------------------------------------------------------------


@given(
    every=st.floats(0.01, 1e6),
    seconds=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50),
)
def test_by_seconds_there_is_at_most_one_evaluation_for_each_multiple(
    every: float, seconds: list[float]
) -> None:
    """However long steps take; and after a time without any step there is one."""
    is_due_at, clock, num_due = by_seconds(every), 0.0, 0
    for step, took in enumerate(seconds, start=1):
        before = Position(step=step - 1, wall_seconds=clock)
        clock += took
        is_due = is_due_at(Position(step=step, wall_seconds=clock), before)
        assert is_due or took < every * (1 + 1e-9)  # sums of seconds are rounded
        num_due += is_due
    assert num_due <= clock // every


def test_a_multiple_that_passes_during_an_evaluation_is_left_out() -> None:
    """With it an evaluation longer than the interval would follow every single step."""
    after_evaluation = Position(step=5, wall_seconds=31.0)
    assert not by_seconds(10.0)(Position(step=6, wall_seconds=32.0), after_evaluation)
    assert by_seconds(10.0)(Position(step=7, wall_seconds=40.5), after_evaluation)


def test_the_loop_evaluates_by_the_clock_of_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at this clock takes a second; the second attempt goes on from second 24."""
    clock = itertools.count(100.0)
    monkeypatch.setattr(position, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    plan = {"every_steps": None, "every_seconds": 6}
    first = Bench(make_brief(evaluation=plan, budget={"max_steps": 10}), tmp_path / "1")
    longer = make_brief(evaluation=plan, budget={"max_steps": 20})
    assert evaluated(first) == [4, 6, 9, 10]
    second = Bench(longer, tmp_path / "2", resume=first.last_state)
    assert evaluated(second) == [14, 16, 19, 20]


# ---- training states ----------------------------------------------------------------------------


def saved(bench: Bench) -> list[int]:
    bench.training.run()
    return [staged.manifest.step for staged in bench.reporter.of_kind(CheckpointKind.RESUME)]


def test_the_loop_saves_by_the_clock_of_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at this clock takes a second; the second attempt goes on from second 21."""
    clock = itertools.count(100.0)
    monkeypatch.setattr(position, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    plan = {"state_every_steps": None, "state_every_seconds": 6}
    first = Bench(make_brief(checkpoints=plan, budget={"max_steps": 10}), tmp_path / "1")
    longer = make_brief(checkpoints=plan, budget={"max_steps": 20})
    assert saved(first) == [4, 7, 10]
    second = Bench(longer, tmp_path / "2", resume=first.last_state)
    assert saved(second) == [12, 15, 18, 20]


def test_a_state_that_comes_due_during_an_evaluation_is_saved_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation takes ten seconds here, a step none, and every state is ten seconds away."""
    clock = [0.0]
    monkeypatch.setattr(position, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    brief = make_brief(
        evaluation={"every_steps": 3},
        checkpoints={"state_every_steps": None, "state_every_seconds": 10},
        budget={"max_steps": 8},
    )
    bench = Bench(brief, tmp_path)
    monkeypatch.setattr(bench.reporter, "publish", with_a_look_at(bench.reporter.publish, clock))
    assert saved(bench) == [4, 7, 8]


def with_a_look_at(publish: Callable[[Staged], None], clock: list[float]) -> Any:
    def published(staged: Staged) -> None:
        publish(staged)
        if staged.manifest.kind is CheckpointKind.EVAL:
            clock[0] += 10.0

    return published


def test_states_are_saved_by_seconds_or_by_steps() -> None:
    assert CheckpointsSpec().state_every_seconds == 30.0
    by_steps = CheckpointsSpec.model_validate({"state_every_steps": 7})
    assert (by_steps.state_every_steps, by_steps.state_every_seconds) == (7, None)
    assert CheckpointsSpec.model_validate_json(by_steps.model_dump_json()) == by_steps
    for plan in ({"state_every_steps": 7, "state_every_seconds": 7}, {"state_every_seconds": None}):
        with pytest.raises(ValueError, match="expected state_every_seconds or state_every_steps"):
            CheckpointsSpec.model_validate(plan)


# ---- the specification --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [{}, {"every_seconds": 5}, {"geometric": {"first": 1, "factor": 2}}, {"every_steps": 7}],
)
def test_a_plan_is_the_same_after_a_trip_through_json(plan: dict[str, Any]) -> None:
    spec = EvaluationSpec.model_validate(plan)
    again = EvaluationSpec.model_validate_json(spec.model_dump_json())
    assert again == spec


@pytest.mark.parametrize(
    ("plan", "seen"),
    [
        ({"every_steps": 5, "every_seconds": 5}, "every_steps and every_seconds"),
        ({"share": None}, "none"),
        ({"share": 0.1, "every_steps": 5}, "share and every_steps"),
        ({"every_seconds": 1, "geometric": {"first": 1, "factor": 2}}, "every_seconds and geo"),
    ],
)
def test_a_plan_has_exactly_one_cadence(plan: dict[str, Any], seen: str) -> None:
    with pytest.raises(ValueError, match=f"expected one of share, .* saw {seen}"):
        EvaluationSpec.model_validate(plan)


def test_without_a_word_evaluations_cost_one_percent() -> None:
    assert EvaluationSpec().share == 0.01
    assert EvaluationSpec.model_validate({"at_y": True, "every_steps": None}).share == 0.01
    assert EvaluationSpec.model_validate({"every_steps": 100}).share is None
