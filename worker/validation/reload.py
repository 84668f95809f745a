"""From the files of an eval checkpoint to its model's scores.

The one way from files to a result: for a stranger with a download (``worker/verify.py``) and for
the process that checks a checkpoint before it is listed
(``worker/validation/evaluator_process.py``).
"""

from pathlib import Path

from torch import nn

from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.checkpointing.model_files import check_files, read_model
from roadless.worker.data.base import Description
from roadless.worker.distributed.layout import lay_out
from roadless.worker.distributed.precision import set_precision
from roadless.worker.errors import CheckpointUnreadable
from roadless.worker.model.build import build_model
from roadless.worker.rank_launch import ModelSources

MANIFEST_FILE = "manifest.json"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a download; raise CheckpointUnreadable."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointUnreadable(f"{MANIFEST_FILE}: expected a manifest, saw {error}") from error


def empty_model(
    folder: Path, *, spec: JobSpec, data: Description, sources: ModelSources
) -> nn.Module:
    """Return a model on the CPU for the weights of ``folder``, an eval checkpoint of ``spec``.

    Raises the JobFailed errors named ``Model...``.
    """
    model = build_model(
        spec.model, data=data, seed=spec.training.seed, sources=sources, like=folder
    )
    lay_out(model, parallelism=spec.parallelism)
    set_precision(model, spec.training.precision)
    return model


def fill(model: nn.Module, folder: Path, manifest: Manifest) -> None:
    """Load the files into an empty model, once each matches the manifest.

    Raises CheckpointUnreadable when one does not, or does not fit the model.
    """
    check_files(folder, manifest)
    read_model(folder, model)
