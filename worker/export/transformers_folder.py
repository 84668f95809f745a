"""A folder that ``from_pretrained`` loads: transformers models as they are, ``gpt`` converted."""

import importlib
import shutil
from pathlib import Path
from typing import Any

from roadless.service.contract.job.models import GptPreset, TransformersModel, label_of
from roadless.worker.export.compare import require_same
from roadless.worker.export.errors import NotExportable, ToolMissing
from roadless.worker.export.source import Loaded, Source
from roadless.worker.model.gpt import Gpt

#: The same sums by the same operators; only the angles of rotary positions are rounded otherwise,
#: which shows over long contexts.
TOLERANCE = 1e-4

_ROOM = "roadless.worker.model.huggingface.folders"


def write_transformers(source: Source, loaded: Loaded, folder: Path) -> float:
    """Write the folder, load it again and return how far its outputs differ from the model's.

    Raises NotExportable for a model without an equivalent in transformers, ToolMissing, and
    OutputsDiffer.
    """
    transformers, spec = _transformers(), source.architecture
    match spec:
        case TransformersModel(auto_class=auto_class):
            for file in source.manifest.files:
                shutil.copyfile(source.folder / file.name, folder / file.name)
        case GptPreset():
            assert isinstance(loaded.model, Gpt)
            auto_class = "AutoModelForCausalLM"
            transformers.write_gpt(loaded.model, folder, spec=spec)
        case _:
            raise NotExportable(
                "expected a model of transformers or the preset gpt, saw "
                f"{label_of(spec)}, which has no equivalent in transformers"
            )
    written = transformers.load_folder(folder, auto_class=auto_class)
    return require_same(loaded, written, tolerance=TOLERANCE)


def _transformers() -> Any:
    try:
        return importlib.import_module(_ROOM)
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "huggingface_hub"):
            raise
        raise ToolMissing(
            f"expected the package {error.name}, which the extra 'transformers' installs; saw none"
        ) from error
