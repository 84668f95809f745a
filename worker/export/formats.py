"""The formats by name. In every format OUT appears complete and checked, or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roadless.worker.checkpointing.model_files import check_file
from roadless.worker.export.errors import ExportError
from roadless.worker.export.onnx_file import write_onnx
from roadless.worker.export.source import Source, load, open_source
from roadless.worker.export.transformers_folder import write_transformers
from roadless.worker.settings import RunnerSettings

_WEIGHTS = (".safetensors", ".safetensors.index.json")

#: Writes into a folder; returns by how much outputs differ, relative to their size.
Write = Callable[[Source, Path, RunnerSettings], float]


def export(folder: Path, out: Path, *, to: str, settings: RunnerSettings) -> dict[str, Any]:
    """Write the eval checkpoint in ``folder`` to ``out``; return a summary.

    ``to``: one of FORMATS. ``settings``: what may be run and read to load the model. Raises
    ExportError, OSError, and the JobFailed errors of checkpoints, models and data.
    """
    if out.exists():
        raise ExportError(f"expected a folder that does not exist, saw {out}")
    source = open_source(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that it can be renamed; gone with whatever goes wrong.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as staging:
        made = Path(staging) / "out"
        made.mkdir()
        difference = _WRITERS[to](source, made, settings)
        files = sorted(path.name for path in made.iterdir())
        made.rename(out)
    return {"format": to, "folder": str(out), "files": files, "largest_difference": difference}


def _onnx(source: Source, folder: Path, settings: RunnerSettings) -> float:
    manifest = source.manifest
    metadata = {
        "checkpoint_id": manifest.checkpoint_id,
        "job_id": manifest.job_id,
        "step": str(manifest.step),
    }
    return write_onnx(load(source, settings=settings), folder, metadata=metadata)


def _transformers(source: Source, folder: Path, settings: RunnerSettings) -> float:
    return write_transformers(source, load(source, settings=settings), folder)


def _safetensors(source: Source, folder: Path, _settings: RunnerSettings) -> float:
    """The weights are already in this format: their bytes are those of the manifest."""
    for file in source.manifest.files:
        if file.name.endswith(_WEIGHTS):
            shutil.copyfile(source.folder / file.name, folder / file.name)
            check_file(folder, file)
    return 0.0


_WRITERS: dict[str, Write] = {
    "onnx": _onnx,
    "transformers": _transformers,
    "safetensors": _safetensors,
}
FORMATS = tuple(_WRITERS)
