"""The process that evaluates checkpoints beside training (``worker/validation/evaluator.py``).

It was forked before the rank had any state, and gets only files from the training: data and model
are built here, once, and each checkpoint is read as a stranger would read it. The connection
carries pickles, since both ends belong to one program on one machine.
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
from roadless.worker.evaluation.inputs import datasets_of, model_sources
from roadless.worker.evaluation.sets import Datasets
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.secrets import install_secrets
from roadless.worker.setup import require_determinism
from roadless.worker.validation.reload import empty_model, fill

log = logging.getLogger(__name__)

#: The least time between two beats; each takes a little of the rank interpreter's time.
_BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Setup:
    """What the process is sent first. ``threads``: torch's, since sums depend on them."""

    brief: AttemptBrief
    threads: int
    device: torch.device


@dataclass(frozen=True)
class Question:
    """A checkpoint. ``max_batches``: of the validation split alone; None: all of every set."""

    folder: Path
    manifest: Manifest
    max_batches: int | None


@dataclass(frozen=True)
class Beat:
    """A sign of progress."""


@dataclass(frozen=True)
class Result:
    """The answer."""

    result: EvalResult


@dataclass(frozen=True)
class BadFiles:
    """The answer when the files are not what their manifest says, or do not load."""

    message: str


@dataclass(frozen=True)
class Failure:
    """The answer when something else went wrong."""

    message: str


Reply = Beat | Result | BadFiles | Failure


def main(rank: Connection, launch: RankLaunch) -> None:
    """Answer questions until the rank ends the connection."""
    setup: Setup = rank.recv()
    with AttemptApi(launch.service_url, attempt_id=launch.attempt_id, token=launch.token) as api:
        process = _Process(launch, setup, api, beat=_beats(rank))
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
        setup: Setup,
        api: AttemptApi,
        *,
        beat: Callable[[], None],
    ) -> None:
        self._launch = launch
        self._brief = setup.brief
        self._device = setup.device
        self._api = api
        self._beat = beat
        self._datasets: Datasets | None = None
        self._model: nn.Module | None = None
        install_secrets(setup.brief, data_cache=launch.data_sources.cache)
        torch.set_num_threads(setup.threads)
        if setup.brief.spec.training.deterministic:
            require_determinism()

    def answer(self, question: Question) -> Reply:
        try:
            return Result(self._evaluate(question))
        except CheckpointUnreadable as error:
            return BadFiles(str(error))
        except Exception as error:
            log.exception("the evaluation of %s failed", question.manifest.checkpoint_id)
            return Failure(f"{type(error).__name__}: {error}")

    def _evaluate(self, question: Question) -> EvalResult:
        datasets, model = self._ready(question.folder)
        fill(model, question.folder, question.manifest)
        spec = self._brief.spec
        if question.max_batches is not None:
            spec, datasets = _first_batches(spec, question.max_batches), datasets.validation_only()
        try:
            return self._score(model, datasets, spec, device=self._device)
        except torch.OutOfMemoryError:
            log.warning("no memory left on the GPU beside training; evaluating on the CPU")
        return self._score(model, datasets, spec, device=torch.device("cpu"))

    def _ready(self, folder: Path) -> tuple[Datasets, nn.Module]:
        if self._datasets is None or self._model is None:
            self._datasets = datasets_of(self._launch, self._brief, self._api, say=self._say)
            self._model = empty_model(
                folder,
                spec=self._brief.spec,
                data=self._datasets.description,
                sources=model_sources(self._launch),
            )
        return self._datasets, self._model

    def _say(self, text: str) -> None:
        log.info("evaluator: %s", text)
        self._beat()

    def _score(
        self, model: nn.Module, datasets: Datasets, spec: JobSpec, *, device: torch.device
    ) -> EvalResult:
        """Score on the device, and leave nothing there."""
        try:
            return reevaluate(model.to(device), datasets=datasets, spec=spec, on_batch=self._beat)
        finally:
            model.to("cpu")
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _first_batches(spec: JobSpec, max_batches: int) -> JobSpec:
    limited = spec.evaluation.model_copy(update={"max_batches": max_batches})
    return spec.model_copy(update={"evaluation": limited})
