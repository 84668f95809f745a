"""The rank's end of the process that evaluates checkpoints: asks, waits, replaces it when it dies.

The process has only the files (``worker/validation/evaluator_process.py``), so it finds what anyone
who downloads them finds. It is kept as long as it answers; one that dies, fails or goes silent is
killed, and the question is asked once more, of a new one.
"""

import logging
from pathlib import Path
from typing import Protocol

from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.worker.errors import CheckpointUnreadable
from roadless.worker.evaluation.evaluate import EvalResult
from roadless.worker.validation.evaluator_process import (
    BadFiles,
    Beat,
    Failure,
    Question,
    Reply,
    Result,
    Setup,
)
from roadless.worker.validation.zygote import ForkedProcess, Zygote, ZygoteGone

log = logging.getLogger(__name__)

#: How many processes may fail at a question before it is given up.
TRIES = 2


class EvaluatorFailed(Exception):
    """No process was able to answer; nothing is known about the checkpoint."""


class Evaluates(Protocol):
    """Evaluates a checkpoint's files."""

    def evaluate(
        self, folder: Path, manifest: Manifest, *, max_batches: int | None = None
    ) -> EvalResult:
        """Evaluate; raises CheckpointUnreadable for bad files, and EvaluatorFailed."""


class _Lost(Exception):
    """The process has not answered, and will not."""


class Evaluator:
    """Used by one thread. ``silence_seconds``: after which a silent process is given up."""

    def __init__(self, zygote: Zygote, setup: Setup, *, silence_seconds: float) -> None:
        self._zygote = zygote
        self._setup = setup
        self._silence_seconds = silence_seconds
        self._process: ForkedProcess | None = None

    def evaluate(
        self, folder: Path, manifest: Manifest, *, max_batches: int | None = None
    ) -> EvalResult:
        """Return the result of evaluating the model in the files.

        ``max_batches``: of the validation split alone; None: all of every set. Raises
        CheckpointUnreadable when the files are not what the manifest says or do not load, and
        EvaluatorFailed.
        """
        question = Question(folder, manifest, max_batches)
        losses: list[_Lost] = []
        while len(losses) < TRIES:
            try:
                return self._ask(question)
            except _Lost as error:
                log.warning("evaluation of %s: %s", manifest.checkpoint_id, error)
                losses.append(error)
                self._end_process()
            except ZygoteGone as error:
                raise EvaluatorFailed(str(error)) from error
        raise EvaluatorFailed(f"{TRIES} processes failed, the last: {losses[-1]}")

    def _ask(self, question: Question) -> EvalResult:
        process = self._process or self._begin()
        try:
            process.connection.send(question)
            while isinstance(reply := self._hear(process), Beat):
                pass
        except (EOFError, OSError) as error:
            raise _Lost("expected an answer, saw that the process died") from error
        match reply:
            case Result(result):
                return result
            case BadFiles(message):
                raise CheckpointUnreadable(message)
            case Failure(message):
                raise _Lost(message)

    def _begin(self) -> ForkedProcess:
        self._process = self._zygote.fork()
        self._process.connection.send(self._setup)
        return self._process

    def _hear(self, process: ForkedProcess) -> Reply:
        if not process.connection.poll(self._silence_seconds):
            raise _Lost(f"expected a reply within {self._silence_seconds:g} s, saw none")
        reply: Reply = process.connection.recv()
        return reply

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
