"""Validates each eval checkpoint before it is listed, in a thread beside training, in order.

A process that has only the files (``worker/validation/evaluator.py``) evaluates them. Inline, it
repeats the first batches of training's evaluation, and a checkpoint that does not give the same
loss is never listed. Async, it alone evaluates, so the point of the curve is what the files give.
Results wait neither for an upload nor for a service that is away.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from roadless.service.contract.checkpoint.manifest import (
    EvaluationCheck,
    EvaluationReceipt,
    Manifest,
)
from roadless.service.contract.reports.events import Event, Notice
from roadless.worker.background import yield_to_others
from roadless.worker.errors import MESSAGE_LENGTH, CheckpointUnreadable
from roadless.worker.evaluation.evaluate import Checked, EvalResult
from roadless.worker.reporting.staged_checkpoint import ValidatedManifest
from roadless.worker.validation.evaluator import Evaluates

log = logging.getLogger(__name__)

#: By how much a GPU's sums may differ in another order or on the CPU: relative.
GPU_TOLERANCE = 1e-3


def tolerance_on(device: torch.device) -> float:
    """Return by how much a fresh process's loss may differ; on a CPU, not at all."""
    return GPU_TOLERANCE if device.type == "cuda" else 0.0


class EventSink(Protocol):
    """Takes events for the service (``roadless.worker.reporting.reporter.Reporter``)."""

    def say(self, event: Event) -> None:
        """Queue an event."""


class CheckpointValidator:
    """Validates for the lead. ``tolerance``: relative, by which losses may differ; 0: none."""

    def __init__(
        self, evaluator: Evaluates, *, events: EventSink, batch_size: int, tolerance: float
    ) -> None:
        self._evaluator = evaluator
        self._events = events
        self._batch_size = batch_size
        self._tolerance = tolerance
        self._pool = ThreadPoolExecutor(
            1, thread_name_prefix="validate", initializer=yield_to_others
        )
        self._changed = threading.Condition()
        self._num_under_way = 0
        self._results: list[tuple[int, EvalResult]] = []
        #: The last step whose evaluation was lost.
        self.lost_step: int | None = None

    def check(
        self, folder: Path, manifest: Manifest, *, checked: Checked
    ) -> Future[ValidatedManifest | None]:
        """Have the first batches evaluated again. ``checked``: what training found over them.

        If cancelled before its turn, it does not run.
        """
        return self._pool.submit(lambda: self._checked(folder, manifest, checked))

    def evaluate(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        say: Callable[[EvalResult], None],
        receipt_of: Callable[[EvalResult], EvaluationReceipt],
    ) -> Future[ValidatedManifest | None]:
        """Have everything evaluated, and ``say`` the result before the manifest is returned."""
        with self._changed:
            self._num_under_way += 1

        def work() -> ValidatedManifest | None:
            try:
                result = self._evaluator.evaluate(folder, manifest)
                say(result)
                receipt = receipt_of(result)
            except Exception as error:  # whatever it is, training must not wait forever
                log.exception("the evaluation of step %d failed", manifest.step)
                self.lose(manifest.step, str(error))
                self._end_one([])
                return None
            self._end_one([(manifest.step, result)])
            return _with_check(manifest, receipt, _check_of_all(result))

        return self._pool.submit(work)

    def lose(self, step: int, why: str) -> None:
        """Report that a point will not be in the curve."""
        self._tell(
            "evaluation.lost",
            f"the evaluation of step {step} is lost, and its checkpoint is not listed; training "
            f"waits for its evaluations from now on: {why}",
        )
        with self._changed:
            self.lost_step = step

    def wait(self, *, at_most: int, seconds: float) -> bool:
        """Wait until at most ``at_most`` evaluations are under way; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_under_way <= at_most, seconds)

    def results(self) -> list[tuple[int, EvalResult]]:
        """Return the results since the last call, each with its step, in order."""
        with self._changed:
            results, self._results = self._results, []
            return results

    def _end_one(self, results: list[tuple[int, EvalResult]]) -> None:
        with self._changed:
            self._results += results
            self._num_under_way -= 1
            self._changed.notify_all()

    def _checked(
        self, folder: Path, manifest: Manifest, checked: Checked
    ) -> ValidatedManifest | None:
        receipt = manifest.evaluation
        assert receipt is not None, "expected the checkpoint of an evaluation"
        seen = self._seen(folder, manifest, checked)
        if seen is None:
            return None
        check = EvaluationCheck(
            num_examples=checked.num_examples,
            loss=checked.loss,
            seen_loss=seen.loss,
            tolerance=self._tolerance,
        )
        if not check.holds or seen.num_examples != checked.num_examples:
            self._refuse(
                manifest,
                f"expected the loss {checked.loss!r} over the first {checked.num_examples} "
                f"examples, saw {seen.loss!r} over {seen.num_examples}",
            )
            return None
        return _with_check(manifest, receipt, check)

    def _seen(self, folder: Path, manifest: Manifest, checked: Checked) -> Checked | None:
        max_batches = -(-checked.num_examples // self._batch_size)
        try:
            return self._evaluator.evaluate(folder, manifest, max_batches=max_batches).checked
        except CheckpointUnreadable as error:
            self._refuse(manifest, str(error))
        except Exception as error:  # whatever it is, what is not checked is not listed
            self._tell(
                "checkpoint.unchecked",
                f"the checkpoint of step {manifest.step} is not listed, since no process was able "
                f"to evaluate it again: {error}",
            )
        return None

    def _refuse(self, manifest: Manifest, message: str) -> None:
        self._tell(
            "checkpoint.mismatch",
            f"the checkpoint of step {manifest.step} is not listed, since a fresh process did not "
            f"find in its files what training found: {message}",
        )

    def _tell(self, code: str, message: str) -> None:
        log.error("%s: %s", code, message)
        self._events.say(Notice(code=code, message=message[:MESSAGE_LENGTH]))


def _check_of_all(result: EvalResult) -> EvaluationCheck:
    """The check of a result that was found from the files themselves."""
    return EvaluationCheck(
        num_examples=result.num_examples, loss=result.loss, seen_loss=result.loss
    )


def _with_check(
    manifest: Manifest, receipt: EvaluationReceipt, check: EvaluationCheck
) -> ValidatedManifest:
    checked = receipt.model_copy(update={"check": check})
    return ValidatedManifest(manifest.model_copy(update={"evaluation": checked}))
