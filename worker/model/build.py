"""Builds a model from its spec: one ``match``, and no other code knows the names."""

import importlib
from pathlib import Path
from typing import Any, assert_never

from torch import nn

from roadless.service.contract.job.models import (
    CheckpointModel,
    ConvnetPreset,
    EntryPointModel,
    GptPreset,
    LinearPreset,
    MlpPreset,
    ModelSpec,
    ResnetPreset,
    TransformersModel,
    VitPreset,
)
from roadless.worker.data.base import Description
from roadless.worker.errors import ModelNotFound
from roadless.worker.model import entry_point
from roadless.worker.model.convnet import Convnet
from roadless.worker.model.gpt import Gpt
from roadless.worker.model.linear import Linear
from roadless.worker.model.mlp import Mlp
from roadless.worker.model.random_states import forked_random_states
from roadless.worker.model.resnet import Resnet
from roadless.worker.model.vit import Vit
from roadless.worker.rank_launch import ModelSources

_NOTHING = ModelSources()
#: Imported by the first job that needs it: half a second, and a package that may be absent.
_TRANSFORMERS_MODULE = "roadless.worker.model.huggingface.build"


def build_model(
    spec: ModelSpec,
    *,
    data: Description,
    seed: int,
    sources: ModelSources = _NOTHING,
    like: Path | None = None,
) -> nn.Module:
    """Return the model on the CPU. Its weights are a function of the arguments alone.

    ``seed``: in [0, 2**63). ``sources``: what this node's operator allows besides presets.
    ``like``: an eval checkpoint's folder, whose configuration overrides the spec's; its weights are
    left to ``roadless.worker.checkpointing.model_files.read_model``. The global random states are
    left as they were. Raises the JobFailed errors named ``Model...``.
    """
    with forked_random_states(seed=seed):
        return _build(spec, data=data, sources=sources, like=like)


def _build(
    spec: ModelSpec, *, data: Description, sources: ModelSources, like: Path | None
) -> nn.Module:
    match spec:
        case LinearPreset():
            return Linear(spec, data=data)
        case MlpPreset():
            return Mlp(spec, data=data)
        case ConvnetPreset():
            return Convnet(spec, data=data)
        case ResnetPreset():
            return Resnet(spec, data=data)
        case VitPreset():
            return Vit(spec, data=data)
        case GptPreset():
            return Gpt(spec, data=data)
        case TransformersModel():
            model: nn.Module = _transformers().build(spec, data=data, sources=sources, like=like)
            return model
        case CheckpointModel(architecture=architecture):
            assert architecture is not None, "expected the service to fill in the architecture"
            return _build(architecture, data=data, sources=sources, like=like)
        case EntryPointModel():
            return entry_point.make(spec, data=data, sources=sources)
        case _:
            assert_never(spec)


def _transformers() -> Any:
    try:
        return importlib.import_module(_TRANSFORMERS_MODULE)
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "huggingface_hub"):
            raise
        raise ModelNotFound(
            f"expected the package {error.name} on this node, which the extra 'transformers' "
            "installs; saw none"
        ) from error
