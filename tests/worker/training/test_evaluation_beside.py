"""Evaluations beside training, as the loop sees them: order, bounds, the same curve and end."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process_evaluator import InProcessEvaluator
from training_bench import CONVNET, Bench, ScriptedReporter, bits, make_brief
from worker_drills import wait_until

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.reports.events import Notice
from roadless.service.contract.states import Reason
from roadless.worker.evaluation.evaluate import noop
from roadless.worker.reporting.outbox import Heard
from roadless.worker.training import evaluations
from roadless.worker.training.agreement import Due, Orders
from roadless.worker.validation.checkpoint_validator import CheckpointValidator

ASYNC = {"every_steps": 1, "placement": "async"}


class Beside:
    """A bench whose evaluations take place in a thread, when the test lets them."""

    def __init__(
        self, folder: Path, *, fails: frozenset[int] = frozenset(), **changes: Any
    ) -> None:
        resume = changes.pop("resume", None)
        script = changes.pop("script", None)
        beat = changes.pop("beat", noop)
        changes = {"evaluation": ASYNC, **changes}
        brief = make_brief(**changes)
        self.evaluator = InProcessEvaluator(brief.spec, fails=fails)
        self.bench = Bench(
            brief,
            folder,
            script=script,
            make_validator=self._validator,
            resume=resume,
            beat=beat,
        )

    def _validator(self, reporter: ScriptedReporter) -> CheckpointValidator:
        return CheckpointValidator(self.evaluator, events=reporter, batch_size=20, tolerance=0)

    def run(self) -> Reason | None:
        """Train to the end, and until every checkpoint was looked at."""
        reason = self.bench.training.run()
        for staged in self.bench.reporter.of_kind(CheckpointKind.EVAL):
            assert staged.validated is not None
            staged.validated.result(20)
        return reason

    @property
    def notices(self) -> list[str]:
        return [event.code for event in self.bench.reporter.said if isinstance(event, Notice)]

    @property
    def curve(self) -> list[Any]:
        return [
            (point.step, point.loss.hex(), bits(point.metrics))
            for point in self.bench.reporter.evals
        ]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "_WAIT_SECONDS", 0.01)


def held(beside: Beside) -> Callable[[], None]:
    """Let no evaluation end; returns what lets one more."""
    beside.evaluator.may_answer = threading.Semaphore(0)
    return beside.evaluator.may_answer.release


# ---- the same as inline -------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    every=st.integers(1, 4),
    max_steps=st.integers(1, 7),
    state_every=st.integers(1, 4),
    patience=st.none() | st.integers(1, 3),
)
def test_curve_state_and_end_are_those_of_a_job_that_waits(
    tmp_path_factory: pytest.TempPathFactory,
    every: int,
    max_steps: int,
    state_every: int,
    patience: int | None,
) -> None:
    """Bit for bit; with early stopping each evaluation is judged before the next state is saved."""
    early = {} if patience is None else {"patience": {"evaluations": patience, "min_delta": 1.0}}
    # With early stopping, evaluations are judged before states; a result between two states
    # comes a step later.
    every = state_every if early else every
    runs = []
    for placement in ("inline", "async"):
        beside = Beside(
            tmp_path_factory.mktemp(placement),
            model=CONVNET,
            evaluation={"every_steps": every, "placement": placement},
            checkpoints={"state_every_steps": state_every},
            budget={"max_steps": max_steps, **early},
        )
        runs.append((beside, beside.run()))
    (inline, reason), (other, other_reason) = runs
    assert other.curve == inline.curve
    assert (other_reason, other.bench.training.step) == (reason, inline.bench.training.step)
    assert bits(other.bench.state) == bits(inline.bench.state)
    records = [one.bench.training.position.early_stopping for one, _ in runs]
    assert records[0] == records[1]


def test_the_files_are_of_the_step_of_their_point(tmp_path: Path) -> None:
    """Training has gone on when they are evaluated."""
    beside = Beside(tmp_path, budget={"max_steps": 3})
    release = held(beside)
    threading.Timer(0.2, lambda: [release() for _ in range(9)]).start()
    beside.run()
    assert [point.step for point in beside.bench.reporter.evals] == [1, 2, 3]
    manifests = [
        staged.validated.result(10)
        for staged in beside.bench.reporter.of_kind(CheckpointKind.EVAL)
        if staged.validated is not None
    ]
    losses = [manifest.evaluation.loss for manifest in manifests]
    assert losses == [point.loss for point in beside.bench.reporter.evals]
    assert [manifest.step for manifest in manifests] == [1, 2, 3]


# ---- bounds -------------------------------------------------------------------------------------


def test_training_goes_on_beside_two_evaluations_and_waits_with_the_third(tmp_path: Path) -> None:
    """And says so once."""
    beside = Beside(tmp_path, budget={"max_steps": 6})
    release = held(beside)
    running = threading.Thread(target=beside.run)
    running.start()
    try:
        wait_until(lambda: "evaluation.slow" in beside.notices)
        assert len(beside.bench.reporter.steps) == 3
        assert beside.bench.reporter.evals == []
        release()
        wait_until(lambda: len(beside.bench.reporter.steps) == 4)
        assert [point.step for point in beside.bench.reporter.evals] == [1]
    finally:
        for _ in range(9):
            release()
        running.join(20)
    assert [point.step for point in beside.bench.reporter.evals] == [1, 2, 3, 4, 5, 6]
    assert beside.notices == ["evaluation.slow"]


def test_who_waits_shows_that_it_lives(tmp_path: Path) -> None:
    beats: list[int] = []
    beside = Beside(tmp_path, budget={"max_steps": 1}, beat=lambda: beats.append(1))
    release = held(beside)
    beside.bench.training.take_step()
    beside.bench.evaluations.evaluate(beside.bench.training.position, evaluations_served=0)
    before = len(beats)
    threading.Timer(0.3, release).start()
    beside.bench.evaluations.drain()
    assert len(beats) > before + 3


def test_the_last_evaluation_is_made_by_the_ranks_themselves(tmp_path: Path) -> None:
    """After all that was under way; they have nothing else to do by then."""
    beside = Beside(tmp_path, budget={"max_steps": 3})
    beside.run()
    assert [step for step, batches in beside.evaluator.asked if batches is None] == [1, 2]
    assert [step for step, batches in beside.evaluator.asked if batches is not None] == [3]


# ---- early stopping -----------------------------------------------------------------------------


def test_a_goal_that_is_found_reached_ends_the_job_with_a_later_step(tmp_path: Path) -> None:
    until = {"metric": "eval.loss", "value": 1e9, "mode": "min"}
    beside = Beside(tmp_path, budget={"max_steps": 50, "until": until})
    release = held(beside)
    threading.Timer(0.2, lambda: [release() for _ in range(99)]).start()
    assert beside.run() is Reason.GOAL_REACHED
    assert 1 < beside.bench.training.step <= 5
    assert beside.bench.reporter.evals[-1].step == beside.bench.training.step


def test_a_job_with_a_goal_judges_before_it_saves_a_state(tmp_path: Path) -> None:
    """However slow evaluations are; so it ends with the step that a job that waits ends with."""
    patience = {"evaluations": 1, "min_delta": 100.0}
    beside = Beside(
        tmp_path,
        budget={"max_steps": 50, "patience": patience},
        checkpoints={"state_every_steps": 1},
    )
    release = held(beside)
    for seconds in (0.1, 0.2):
        threading.Timer(seconds, release).start()
    assert beside.run() is Reason.NO_BETTER
    assert beside.bench.training.step == 2


def test_a_job_without_a_goal_saves_states_while_evaluations_are_under_way(tmp_path: Path) -> None:
    beside = Beside(tmp_path, budget={"max_steps": 9}, checkpoints={"state_every_steps": 1})
    release = held(beside)
    running = threading.Thread(target=beside.run)
    running.start()
    try:
        wait_until(lambda: len(beside.bench.reporter.of_kind(CheckpointKind.RESUME)) == 2)
        assert beside.bench.reporter.evals == []
    finally:
        for _ in range(20):
            release()
        running.join(20)


def test_no_evaluation_is_lost_with_an_attempt_that_dies_behind_a_state(tmp_path: Path) -> None:
    """Each saved state knows of every planned evaluation up to its step."""
    patience = {"evaluations": 4, "min_delta": 100.0}
    beside = Beside(
        tmp_path / "1",
        budget={"max_steps": 3, "patience": patience},
        checkpoints={"state_every_steps": 3},
    )
    beside.run()
    assert beside.bench.training.position.early_stopping.evaluations_since_best == 2
    state = beside.bench.last_state
    again = Beside(tmp_path / "2", budget={"max_steps": 50, "patience": patience}, resume=state)
    assert again.run() is Reason.NO_BETTER
    # The second evaluation that counts is of step 5; training has gone on by two at most.
    assert 5 <= again.bench.training.step <= 8


def test_evaluations_that_end_together_end_a_job_as_one_by_one(tmp_path: Path) -> None:
    """Where a step takes longer than an evaluation: with the third evaluation, and not never."""
    patience = {"evaluations": 2, "min_delta": 100.0}
    beside = Beside(tmp_path, budget={"max_steps": 12, "patience": patience})
    results, kept = beside.bench.evaluations.results, []

    def results_in_pairs() -> list[Any]:
        kept.extend(results())
        return [kept.pop(0) for _ in range(2)] if len(kept) > 1 else []

    beside.bench.evaluations.results = results_in_pairs  # type: ignore[method-assign]
    assert beside.run() is Reason.NO_BETTER


def test_what_a_user_asks_for_is_not_judged(tmp_path: Path) -> None:
    until = {"metric": "eval.loss", "value": 1e9, "mode": "min"}
    beside = Beside(
        tmp_path,
        budget={"max_steps": 4, "until": until},
        evaluation={"every_steps": 1000, "placement": "async"},
        checkpoints={"state_every_steps": 1},  # with each of which it would be judged
        script={1: Heard(evaluations_requested=1)},
    )
    assert beside.run() is Reason.BUDGET_REACHED
    assert [point.step for point in beside.bench.reporter.evals] == [2, 4]
    served = [s.evaluations_served for s in beside.bench.reporter.of_kind(CheckpointKind.EVAL)]
    assert served == [1, 0]


# ---- what goes wrong ----------------------------------------------------------------------------


def test_after_a_lost_evaluation_training_makes_its_own(tmp_path: Path) -> None:
    beside = Beside(tmp_path, budget={"max_steps": 6}, fails=frozenset({2}))
    beside.run()
    assert beside.notices.count("evaluation.lost") == 1
    assert [point.step for point in beside.bench.reporter.evals] == [1, 3, 4, 5, 6]
    waited = [step for step, batches in beside.evaluator.asked if batches is not None]
    assert waited == list(range(waited[0], 7))
    assert waited[0] <= 4  # before which that of step 2 had to end


def test_the_evaluation_of_the_last_step_is_made_again_when_it_was_lost(tmp_path: Path) -> None:
    """A stop comes with the step behind it, when nothing more is trained."""
    beside = Beside(
        tmp_path,
        budget={"max_steps": 3},
        evaluation={"every_steps": 3, "placement": "async"},
        fails=frozenset({3}),
        checkpoints={"state_every_steps": 3},
    )
    beside.bench.training.take_step()
    beside.bench.training.take_step()
    orders = beside.bench.training.take_step()
    beside.bench.training.evaluate(Orders(due=Due(evaluation=True)))
    beside.bench.training.evaluate(orders)
    assert beside.notices == ["evaluation.lost"]
    assert [point.step for point in beside.bench.reporter.evals] == [3]


def test_files_that_cannot_be_written_cost_the_point_and_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    beside = Beside(tmp_path, budget={"max_steps": 3})
    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "write_model", full)
        beside.bench.training.take_step()
        beside.bench.training.evaluate(Orders(due=Due(evaluation=True)))
    assert beside.notices == ["checkpoint.failed", "evaluation.lost"]
    beside.run()
    assert [point.step for point in beside.bench.reporter.evals] == [2, 3]
