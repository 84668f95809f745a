"""What an attempt starts from: the weights of its model, and the training state it resumes from.

Weights come from the specification or from one of our checkpoints, a state from an earlier attempt.
"""

import shutil
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from torch import nn

from roadless.service.contract.checkpoint.manifest import CheckpointFile, Manifest
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.worker.api import AttemptApi, Refused
from roadless.worker.checkpointing.model_files import check_file, read_model
from roadless.worker.checkpointing.training_state import Resumed, read_state
from roadless.worker.data.base import Description
from roadless.worker.errors import CheckpointUnreadable, ModelInvalid
from roadless.worker.evaluation.inputs import START_SECONDS
from roadless.worker.model.build import build_model
from roadless.worker.position import Position
from roadless.worker.rank_launch import ModelSources
from roadless.worker.retry import call_with_retry
from roadless.worker.setup import TrainingSetup

_WEIGHTS_SUFFIX = ".safetensors"


def initial_model(
    brief: AttemptBrief,
    *,
    data: Description,
    sources: ModelSources,
    fetch: Callable[[Manifest], Path],
) -> nn.Module:
    """Return the model on the CPU, with the weights that training starts from.

    ``fetch``: puts a manifest's files, checked, into a folder and returns it. An attempt that
    resumes needs no weights from there. Raises the JobFailed errors named ``Model...``.
    """
    manifest, seed = brief.initial, brief.spec.training.seed
    if manifest is None:
        return build_model(brief.spec.model, data=data, seed=seed, sources=sources)
    starts = brief.resume is None
    folder = fetch(manifest if starts else _without_weights(manifest))
    model = build_model(brief.spec.model, data=data, seed=seed, sources=sources, like=folder)
    if starts:
        _put_in(model, folder)
    return model


def resume(brief: AttemptBrief, api: AttemptApi, setup: TrainingSetup, folder: Path) -> Resumed:
    """Put the training state of an earlier attempt back; without one, start at the beginning.

    ``folder``: for the state's files, which are removed again. Raises CheckpointUnreadable.
    """
    if brief.resume is None:
        return Resumed(Position(), None)
    checkpoint_id = brief.resume.checkpoint_id
    files = {file.name: file for file in brief.resume.files}
    _make_empty(folder)

    def fetch(name: str) -> None:
        _fetch_file(files[name], api, folder, checkpoint_id=checkpoint_id)

    resumed = read_state(folder, model=setup.model, optimizer=setup.optimizer, fetch=fetch)
    shutil.rmtree(folder)
    return resumed


def fetch_files(manifest: Manifest, api: AttemptApi, folder: Path) -> None:
    """Download a checkpoint's files into an empty ``folder`` and check them.

    Raises CheckpointUnreadable.
    """
    _make_empty(folder)
    for file in manifest.files:
        _fetch_file(file, api, folder, checkpoint_id=manifest.checkpoint_id)


def _without_weights(manifest: Manifest) -> Manifest:
    files = tuple(file for file in manifest.files if not file.name.endswith(_WEIGHTS_SUFFIX))
    return manifest.model_copy(update={"files": files})


def _put_in(model: nn.Module, folder: Path) -> None:
    """The files are whole, since ``fetch`` checked them: a misfit comes from the data's shape."""
    try:
        read_model(folder, model)
    except CheckpointUnreadable as error:
        raise ModelInvalid(
            f"expected data with the shapes that the checkpoint's model was made for, saw: {error}"
        ) from error


def _fetch_file(file: CheckpointFile, api: AttemptApi, folder: Path, *, checkpoint_id: str) -> None:
    def fetch() -> None:
        api.download(folder / file.name, checkpoint_id=checkpoint_id, name=file.name)

    try:
        call_with_retry(fetch, seconds=START_SECONDS)
    except Refused as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        # Deleted since, as for a database that was restored: an older state may still be there.
        raise CheckpointUnreadable(
            f"{file.name}: expected the file that was stored, saw none"
        ) from error
    check_file(folder, file)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
