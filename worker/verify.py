"""``python -m worker.verify FOLDER``: does a downloaded model score what its receipt says?

Loads an eval checkpoint in this process alone, evaluates it on the recorded held-out examples, and
compares the loss bit for bit. Prints one JSON line; exit status 0 only when both are equal.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from service.contract.manifest import EvaluationReceipt, Manifest
from service.contract.spec import JobSpec
from worker.checkpoint import check_files, read_model
from worker.data.build import build_data
from worker.data.sources import DataSources
from worker.errors import CheckpointUnreadable
from worker.evaluate import EvalResult, reevaluate
from worker.model.build import build_model
from worker.model.sources import ModelSources
from worker.precision import set_precision
from worker.settings import RunnerSettings

MANIFEST_FILE = "manifest.json"
_NO_SOURCES = DataSources()


def verify(
    folder: Path, *, sources: DataSources = _NO_SOURCES, entry_points: tuple[str, ...] = ()
) -> tuple[EvaluationReceipt, EvalResult]:
    """Return what the checkpoint says and what is seen now.

    ``sources``: what data may be read from. ``entry_points``: factories that may be called.

    Sets torch's threads to the receipt's, since sums on a CPU depend on them. Raises
    CheckpointUnreadable for damaged files, and ValueError for a checkpoint without a receipt.
    """
    manifest = _read_manifest(folder / MANIFEST_FILE)
    if manifest.evaluation is None:
        raise ValueError(f"expected an eval checkpoint with a receipt, saw a {manifest.kind} one")
    check_files(folder, manifest)
    torch.set_num_threads(manifest.evaluation.threads)
    spec = JobSpec.model_validate(manifest.spec)
    data = build_data(spec.data, model=spec.model, task=spec.task, sources=sources)
    model = build_model(
        spec.model,
        data=data.description,
        seed=spec.training.seed,
        sources=ModelSources(entry_points=entry_points),
        like=folder,
    )
    set_precision(model, spec.training.precision)
    read_model(folder, model)
    return manifest.evaluation, reevaluate(model, data=data, spec=spec)


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointUnreadable(f"{path.name}: expected a manifest, saw {error}") from error


def main() -> None:
    """Verify the folder named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a downloaded eval checkpoint")
    arguments = parser.parse_args()
    settings = RunnerSettings.from_environment(os.environ)
    expected, seen = verify(
        arguments.folder,
        sources=settings.data_sources,
        entry_points=settings.allowed_entry_points,
    )
    is_equal = seen.loss == expected.loss
    said = {"expected_loss": expected.loss, "loss": seen.loss, "equal": is_equal, **seen.metrics}
    print(json.dumps(said))  # noqa: T201  the answer
    sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
