"""The model that an attempt begins with: from its specification, or from one of our checkpoints."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from service.contract.cluster import AttemptBrief
from service.contract.manifest import Manifest
from worker.checkpoint import read_model
from worker.data.base import Description
from worker.errors import CheckpointUnreadable, ModelInvalid
from worker.model.build import build_model
from worker.model.sources import ModelSources

_WEIGHTS_SUFFIX = ".safetensors"


def initial_model(
    brief: AttemptBrief,
    *,
    data: Description,
    sources: ModelSources,
    fetch: Callable[[Manifest], Path],
) -> nn.Module:
    """Return the model on the CPU, with the weights that training starts from.

    ``fetch``: brings a manifest's files, checked, into a folder and returns it. An attempt that
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


def _without_weights(manifest: Manifest) -> Manifest:
    files = tuple(file for file in manifest.files if not file.name.endswith(_WEIGHTS_SUFFIX))
    return manifest.model_copy(update={"files": files})


def _put_in(model: nn.Module, folder: Path) -> None:
    """The files are whole, since ``fetch`` checked them: what does not fit is the data's shape."""
    try:
        read_model(folder, model)
    except CheckpointUnreadable as error:
        raise ModelInvalid(
            f"expected data with the shapes that the checkpoint's model was made for, saw: {error}"
        ) from error
