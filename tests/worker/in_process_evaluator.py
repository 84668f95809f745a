"""The evaluator's work without its process: for tests of what is made of the answers."""

import threading
from pathlib import Path

from training_bench import build

from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.evaluation.evaluate import EvalResult, reevaluate
from roadless.worker.validation.evaluator import EvaluatorFailed
from roadless.worker.validation.reload import fill


class InProcessEvaluator:
    """Answers from files, once it ``may_answer``; fails at the steps of ``fails``."""

    def __init__(self, spec: JobSpec, *, fails: frozenset[int] = frozenset()) -> None:
        setup = build(spec)
        self._spec, self._model, self._datasets = spec, setup.model, setup.datasets
        self._fails = fails
        self.may_answer = threading.Semaphore(1_000_000)
        self.asked: list[tuple[int, int | None]] = []

    def evaluate(
        self, folder: Path, manifest: Manifest, *, max_batches: int | None = None
    ) -> EvalResult:
        self.asked.append((manifest.step, max_batches))
        assert self.may_answer.acquire(timeout=20)
        if manifest.step in self._fails:
            raise EvaluatorFailed("2 processes failed")
        fill(self._model, folder, manifest)
        spec = self._spec
        if max_batches is not None:
            evaluation = spec.evaluation.model_copy(update={"max_batches": max_batches})
            spec = spec.model_copy(update={"evaluation": evaluation})
        return reevaluate(self._model, datasets=self._datasets, spec=spec)
