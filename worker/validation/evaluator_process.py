"""What the process does that evaluates checkpoints beside training
(``worker/validation/evaluator.py``).

It was forked before the rank became anything, and gets nothing of the training but files: data and
model are built here, once, and each checkpoint is read as a stranger reads it. The connection
carries pickles, since both ends are of one program on one machine.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.worker.api import AttemptApi
from roadless.worker.errors import CheckpointUnreadable
from roadless.worker.evaluation.evaluate import EvalResult, reevaluate
from roadless.worker.evaluation.inputs import held_out_of, model_sources
from roadless.worker.evaluation.sets import HeldOutSets
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.secrets import take
from roadless.worker.setup import require_determinism
from roadless.worker.validation.reload import empty_model, fill

log = logging.getLogger(__name__)

#: It says at most so often that it goes on; each word takes the rank's interpreter a moment.
_BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Beginning:
    """What the process is told first. ``threads``: torch's, since sums depend on them."""

    brief: AttemptBrief
    threads: int
    device: torch.device


@dataclass(frozen=True)
class Question:
    """A checkpoint to evaluate. ``max_batches``: of the main set alone; None: all that there is."""

    folder: Path
    manifest: Manifest
    max_batches: int | None


@dataclass(frozen=True)
class Beat:
    """It goes on."""


@dataclass(frozen=True)
class Found:
    """The answer."""

    result: EvalResult


@dataclass(frozen=True)
class Unfit:
    """The answer when the files are not what their manifest says, or do not load."""

    message: str


@dataclass(frozen=True)
class Failure:
    """There is no answer, for another reason."""

    message: str


Word = Beat | Found | Unfit | Failure


def main(rank: Connection, launch: RankLaunch) -> None:
    """Answer questions until the rank ends the connection."""
    beginning: Beginning = rank.recv()
    with AttemptApi(launch.service_url, attempt_id=launch.attempt_id, token=launch.token) as api:
        process = _Process(launch, beginning, api, beat=_beats(rank))
        while True:
            try:
                question: Question = rank.recv()
            except EOFError:
                return
            rank.send(process.answer(question))


def _beats(rank: Connection) -> Callable[[], None]:
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= _BEAT_SECONDS:
            last = time.monotonic()
            rank.send(Beat())

    return beat


class _Process:
    """Data and model, once they are built."""

    def __init__(
        self,
        launch: RankLaunch,
        beginning: Beginning,
        api: AttemptApi,
        *,
        beat: Callable[[], None],
    ) -> None:
        self._launch = launch
        self._brief = beginning.brief
        self._device = beginning.device
        self._api = api
        self._beat = beat
        self._held_out: HeldOutSets | None = None
        self._model: nn.Module | None = None
        take(beginning.brief, data_cache=launch.data_cache)
        torch.set_num_threads(beginning.threads)
        if beginning.brief.spec.training.deterministic:
            require_determinism()

    def answer(self, question: Question) -> Word:
        try:
            return Found(self._evaluate(question))
        except CheckpointUnreadable as error:
            return Unfit(str(error))
        except Exception as error:
            log.exception("the evaluation of %s fails", question.manifest.checkpoint_id)
            return Failure(f"{type(error).__name__}: {error}")

    def _evaluate(self, question: Question) -> EvalResult:
        held_out, model = self._built(question.folder)
        fill(model, question.folder, question.manifest)
        spec = self._brief.spec
        if question.max_batches is not None:
            spec, held_out = _first_batches(spec, question.max_batches), HeldOutSets(held_out.main)
        try:
            return self._score(model, held_out, spec, device=self._device)
        except torch.OutOfMemoryError:
            log.warning("the GPU has no room beside training; evaluating on the CPU")
        return self._score(model, held_out, spec, device=torch.device("cpu"))

    def _built(self, folder: Path) -> tuple[HeldOutSets, nn.Module]:
        if self._held_out is None or self._model is None:
            self._held_out = held_out_of(self._launch, self._brief, self._api, say=self._say)
            self._model = empty_model(
                folder,
                spec=self._brief.spec,
                data=self._held_out.main.description,
                sources=model_sources(self._launch),
            )
        return self._held_out, self._model

    def _say(self, text: str) -> None:
        log.info("evaluator: %s", text)
        self._beat()

    def _score(
        self, model: nn.Module, held_out: HeldOutSets, spec: JobSpec, *, device: torch.device
    ) -> EvalResult:
        """Score on the device, and leave nothing there."""
        try:
            return reevaluate(model.to(device), held_out=held_out, spec=spec, on_batch=self._beat)
        finally:
            model.to("cpu")
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _first_batches(spec: JobSpec, max_batches: int) -> JobSpec:
    limited = spec.evaluation.model_copy(update={"max_batches": max_batches})
    return spec.model_copy(update={"evaluation": limited})
