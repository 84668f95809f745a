"""What comes of what a fresh process finds: manifests, points, messages to the job's owner."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_attempt_service import eval_point, stage
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.checkpoint.manifest import (
    EvaluationCheck,
    EvaluationReceipt,
    Manifest,
)
from roadless.service.contract.reports.events import EvalPoint, Event, Notice
from roadless.worker.errors import CheckpointUnreadable
from roadless.worker.evaluation.evaluate import Checked, EvalResult
from roadless.worker.validation.checkpoint_validator import (
    GPU_TOLERANCE,
    CheckpointValidator,
    tolerance_on,
)
from roadless.worker.validation.evaluator import Evaluates, EvaluatorFailed

NAN = math.nan


class Sink:
    def __init__(self) -> None:
        self.said: list[Event] = []

    def say(self, event: Event) -> None:
        self.said.append(event)

    @property
    def notices(self) -> list[Notice]:
        return [event for event in self.said if isinstance(event, Notice)]


class Oracle:
    """Gives the answers that the test has prepared, one after the other."""

    def __init__(self, *answers: EvalResult | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[int | None] = []

    def evaluate(
        self, folder: Path, manifest: Manifest, *, max_batches: int | None = None
    ) -> EvalResult:
        self.asked.append(max_batches)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


Make = Callable[..., CheckpointValidator]


@pytest.fixture
def events() -> Sink:
    return Sink()


@pytest.fixture
def make(events: Sink) -> Make:
    def validator(*answers: EvalResult | Exception, tolerance: float = 0.0) -> CheckpointValidator:
        return validator_of(Oracle(*answers), events, tolerance=tolerance)

    return validator


def validator_of(
    evaluator: Evaluates, events: Sink, *, tolerance: float = 0.0
) -> CheckpointValidator:
    return CheckpointValidator(evaluator, events=events, batch_size=10, tolerance=tolerance)


def result(loss: float, num_examples: int = 25) -> EvalResult:
    return EvalResult(loss, {"eval.accuracy": 0.5}, num_examples, Checked(num_examples, loss))


def receipt(loss: float) -> EvaluationReceipt:
    return EvaluationReceipt(
        loss=loss,
        num_examples=25,
        batch_size=10,
        threads=1,
        torch_version="2",
        data_fingerprint="f",
    )


def evaluated(tmp_path: Path, loss: float, step: int = 1) -> tuple[Path, Manifest]:
    staged = stage(tmp_path, step)
    return staged.folder, staged.manifest.model_copy(update={"evaluation": receipt(loss)})


def check(validator: CheckpointValidator, tmp_path: Path, loss: float) -> Manifest | None:
    folder, manifest = evaluated(tmp_path, loss)
    return validator.check(folder, manifest, checked=Checked(25, loss)).result(10)


# ---- checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.1, -0.0, NAN, math.inf, -math.inf, 5e-324])
def test_the_same_loss_is_noted_in_the_receipt(
    make: Make, events: Sink, tmp_path: Path, loss: float
) -> None:
    manifest = check(make(result(loss)), tmp_path, loss)
    assert manifest is not None
    assert manifest.evaluation is not None
    assert manifest.evaluation.check is not None
    assert manifest.evaluation.check.num_examples == 25
    assert repr(manifest.evaluation.check.seen_loss) == repr(loss)
    assert Manifest.model_validate_json(manifest.model_dump_json()).evaluation is not None
    assert events.said == []


@pytest.mark.parametrize(
    ("expected", "seen"),
    [(0.1, math.nextafter(0.1, 1)), (1.0, NAN), (NAN, 1.0), (1.0, math.inf), (math.inf, -math.inf)],
)
def test_another_loss_is_refused_and_both_are_told(
    make: Make, events: Sink, tmp_path: Path, expected: float, seen: float
) -> None:
    assert check(make(result(seen)), tmp_path, expected) is None
    (notice,) = events.notices
    assert notice.code == "checkpoint.mismatch"
    assert f"expected the loss {expected!r}" in notice.message
    assert f"saw {seen!r}" in notice.message


def test_a_loss_over_other_examples_is_refused(make: Make, events: Sink, tmp_path: Path) -> None:
    """Data that has shrunk meanwhile, in the node's cache."""
    assert check(make(result(0.5, num_examples=24)), tmp_path, 0.5) is None
    assert "over 24" in events.notices[0].message


def test_just_as_many_batches_are_computed_as_it_takes(events: Sink, tmp_path: Path) -> None:
    oracle = Oracle(result(0.5))
    check(validator_of(oracle, events), tmp_path, 0.5)
    assert oracle.asked == [3]  # 25 examples by 10


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointUnreadable("model.safetensors: expected a file"), "checkpoint.mismatch"),
        (EvaluatorFailed("2 processes failed"), "checkpoint.unchecked"),
        (RuntimeError("a bug" + 10_000 * "!"), "checkpoint.unchecked"),
    ],
)
def test_what_cannot_be_checked_is_refused_and_why_is_told(
    make: Make, events: Sink, tmp_path: Path, error: Exception, code: str
) -> None:
    assert check(make(error), tmp_path, 0.5) is None
    (notice,) = events.notices
    assert notice.code == code
    assert "step 1 is not listed" in notice.message
    assert str(error)[:20] in notice.message


@given(
    loss=st.floats(-1e9, 1e9),
    relative=st.floats(-2e-2, 2e-2),
    tolerance=st.sampled_from([0.0, 1e-6, 1e-3]),
)
def test_a_check_holds_within_its_tolerance_and_not_beyond(
    loss: float, relative: float, tolerance: float
) -> None:
    seen = loss * (1 + relative)
    said = EvaluationCheck(num_examples=1, loss=loss, seen_loss=seen, tolerance=tolerance)
    assert said.holds == (abs(seen - loss) <= tolerance * abs(loss))
    if tolerance == 0:
        assert said.holds == (seen == loss)


def test_bits_count_where_nothing_is_summed_in_another_order() -> None:
    assert tolerance_on(torch.device("cpu")) == 0
    assert tolerance_on(torch.device("cuda", 0)) == GPU_TOLERANCE


# ---- evaluations beside training ----------------------------------------------------------------


def begin(validator: CheckpointValidator, events: Sink, tmp_path: Path, step: int) -> Future[Any]:
    staged = stage(tmp_path, step)
    return validator.evaluate(
        staged.folder,
        staged.manifest,
        say=lambda found: events.say(eval_point(step, found.loss)),
        receipt_of=lambda found: receipt(found.loss),
    )


def test_points_are_said_in_order_and_before_their_manifest(
    make: Make, events: Sink, tmp_path: Path
) -> None:
    validator = make(*(result(float(step)) for step in range(1, 5)))
    validated = [begin(validator, events, tmp_path, step) for step in range(1, 5)]
    manifest = validated[-1].result(10)
    assert [event.step for event in events.said if isinstance(event, EvalPoint)] == [1, 2, 3, 4]
    assert manifest.evaluation.loss == manifest.evaluation.check.loss == 4.0
    assert manifest.evaluation.check.holds
    assert [step for step, _ in validator.results()] == [1, 2, 3, 4]
    assert validator.results() == []
    assert validator.wait(at_most=0, seconds=0)


@pytest.mark.parametrize(
    "error", [EvaluatorFailed("gone"), CheckpointUnreadable("torn"), OSError()]
)
def test_a_lost_evaluation_is_told_and_does_not_hold_up_the_next(
    make: Make, events: Sink, tmp_path: Path, error: Exception
) -> None:
    validator = make(error, result(2.0))
    first, second = (begin(validator, events, tmp_path, step) for step in (1, 2))
    assert first.result(10) is None
    assert second.result(10) is not None
    assert [notice.code for notice in events.notices] == ["evaluation.lost"]
    assert validator.lost_step == 1
    assert [step for step, _ in validator.results()] == [2]
    assert validator.wait(at_most=0, seconds=0)


class Slow(Oracle):
    """Shows that it is asked, and answers when it may."""

    def __init__(self, *answers: EvalResult | Exception) -> None:
        super().__init__(*answers)
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def evaluate(
        self, folder: Path, manifest: Manifest, *, max_batches: int | None = None
    ) -> EvalResult:
        self.is_asked.set()
        assert self.may_answer.wait(10)
        return super().evaluate(folder, manifest, max_batches=max_batches)


def test_a_check_that_waits_can_be_called_off(events: Sink, tmp_path: Path) -> None:
    """And the one that takes place cannot, since its files are being read."""
    slow = Slow(result(0.5))
    validator = validator_of(slow, events)
    first, second = (
        validator.check(*evaluated(tmp_path, 0.5, step), checked=Checked(25, 0.5))
        for step in (1, 2)
    )
    assert slow.is_asked.wait(10)
    assert (first.cancel(), second.cancel()) == (False, True)
    slow.may_answer.set()
    assert first.result(10) is not None
    assert events.said == []
