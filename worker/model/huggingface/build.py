"""A transformers model from a config, a saved folder or the hub.

Code from a folder or the hub is never run, and weights are safetensors only.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from roadless.service.contract.job.models import TransformersModel
from roadless.worker.data.base import Description
from roadless.worker.errors import ModelForbidden, ModelInvalid, ModelNotFound, ModelUnreadable
from roadless.worker.model.faults import blaming
from roadless.worker.model.huggingface import companions, image_processor
from roadless.worker.model.huggingface.adapter import TransformersAdapter
from roadless.worker.model.huggingface.config import (
    new_config,
    require_fit,
    require_plain,
    require_positions,
    require_task_loss,
)
from roadless.worker.model.huggingface.own_files import require_own_files
from roadless.worker.model.sources import ALLOW_HUB_VARIABLE, allowed_folder
from roadless.worker.model.trial import require_outputs
from roadless.worker.rank_launch import ModelSources

#: Pickles and code are not even fetched.
_HUB_FILES = ("*.json", "*.safetensors", *companions.NAMES)
_FINAL_ANSWERS = frozenset({400, 401, 403, 404, 410})
_OF_IMAGES = "AutoModelForImageClassification"
#: Trained on numbers as the data set gives them: no processor that the folder has did that.
_OF_ARRAYS = (_OF_IMAGES, "AutoModelForAudioClassification", "AutoModelForVideoClassification")
#: A short trial: positions are checked by number, and a whole context may take a CPU minutes.
_TRIAL_TOKENS = 8


def build(
    spec: TransformersModel, *, data: Description, sources: ModelSources, like: Path | None
) -> TransformersAdapter:
    """Return the model in training mode and float32.

    ``like``: an eval checkpoint of such a model; its config and companions are used, its weights
    are left to ``load_folder``. Draws from torch's global random state. Raises the JobFailed errors
    named ``Model...``.
    """
    transformers_logging.disable_progress_bar()
    folder = like or _source(spec, sources=sources)
    # Each architecture checks and fails in its own way, in its properties and methods too.
    if folder is not None and like is None:
        require_own_files(folder, shown=str(spec.pretrained or spec.hub_id))
    expected = "an architecture that transformers can make of this"
    with blaming(ModelInvalid, expected, has_our_code=True):
        model = _made(spec, folder, data=data, has_own_weights=like is None)
        files = _companions(spec, folder, like, sources=sources)
        if spec.auto_class in _OF_ARRAYS:
            files.pop(image_processor.FILE, None)
        if spec.auto_class == _OF_IMAGES:
            files |= image_processor.files_of(data)
        adapter = TransformersAdapter(model.train(), companions=files)
    require_outputs(adapter, data=data, num_tokens=_TRIAL_TOKENS)
    return adapter


def _made(
    spec: TransformersModel, folder: Path | None, *, data: Description, has_own_weights: bool
) -> PreTrainedModel:
    """``has_own_weights``: whether those of ``folder``, if there is one, are to be loaded."""
    config = new_config(spec, data=data) if folder is None else _saved_config(folder)
    require_plain(config)
    if folder is not None and has_own_weights:
        require_task_loss(config)
        model = _pretrained(spec, folder, config=config, data=data)
    else:
        model = _fresh(spec, config)
    require_fit(model.config, spec=spec, data=data)
    require_positions(model, spec=spec)
    return model


def _source(spec: TransformersModel, *, sources: ModelSources) -> Path | None:
    """The folder with config and weights, if there is one."""
    if spec.pretrained is not None:
        return allowed_folder(spec.pretrained, roots=sources.roots)
    if spec.hub_id is None:
        return None
    if not sources.allow_hub:
        raise ModelForbidden(
            f"expected {ALLOW_HUB_VARIABLE}=1 on this node for {spec.hub_id}, saw 0"
        )
    try:
        return Path(
            snapshot_download(spec.hub_id, revision=spec.revision, allow_patterns=list(_HUB_FILES))
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        if not _is_final(error):
            raise
        said = str(error).partition("\n")[0]
        raise ModelNotFound(f"expected {spec.hub_id} on the hub, saw: {said}") from error


def _is_final(error: Exception) -> bool:
    """Whether the hub would answer the same again: not there, or not for this node's token.

    huggingface_hub 2.4 tells a 403 as a lack of local files, with the answer as the cause.
    """
    answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(answer, HfHubHTTPError):
        return getattr(answer.response, "status_code", 0) in _FINAL_ANSWERS
    return isinstance(answer, HFValidationError)


def _saved_config(folder: Path) -> PreTrainedConfig:
    with blaming(ModelUnreadable, "a config.json of transformers"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return config


def _fresh(spec: TransformersModel, config: PreTrainedConfig) -> PreTrainedModel:
    auto_class: Any = getattr(transformers, spec.auto_class)
    # transformers 5.23 fails over None where it has several classes, as it has of deit.
    config.architectures = config.architectures or []
    with blaming(ModelInvalid, f"{spec.auto_class} to make a {config.model_type}"):
        model: PreTrainedModel = auto_class.from_config(
            config, trust_remote_code=False, dtype=torch.float32
        )
    return model


def _pretrained(
    spec: TransformersModel, folder: Path, *, config: PreTrainedConfig, data: Description
) -> PreTrainedModel:
    """Load the weights. Only a head for another number of labels is initialised afresh."""
    auto_class: Any = getattr(transformers, spec.auto_class)
    is_language_model = spec.auto_class == "AutoModelForCausalLM"
    has_other_labels = not is_language_model and config.num_labels != data.num_outputs
    if has_other_labels:
        config.num_labels = data.num_outputs
    expected = f"{spec.auto_class} to load {spec.pretrained or spec.hub_id}"
    with blaming(ModelUnreadable, expected):  # many libraries read a folder, each with own errors
        model: PreTrainedModel = auto_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=has_other_labels,
            dtype=torch.float32,
        )
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.validate(strict=True)  # as it is when the model is saved
    return model


def _companions(
    spec: TransformersModel, folder: Path | None, like: Path | None, *, sources: ModelSources
) -> dict[str, bytes]:
    if spec.tokenizer is None or like is not None:
        return companions.read(folder) if folder is not None else {}
    found = companions.read(allowed_folder(spec.tokenizer, roots=sources.roots))
    if not found:
        raise ModelInvalid(f"expected files of a tokenizer in {spec.tokenizer}, saw none")
    return found
