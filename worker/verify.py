"""``python -m roadless.worker.verify FOLDER ...``: does a downloaded model score what its receipt
says?

Loads an eval checkpoint in this process alone, evaluates it on the recorded held-out examples, and
compares loss and metrics bit for bit. Prints a JSON line for each; exit status 0 only if all are
equal.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from roadless.service.contract.checkpoint.manifest import EvaluationReceipt
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.data.build import build_data
from roadless.worker.evaluation.evaluate import EvalResult, reevaluate
from roadless.worker.evaluation.sets import build_datasets
from roadless.worker.model.sources import wheel_of_this_process
from roadless.worker.rank_launch import ENVIRONMENTS, DataSources, ModelSources
from roadless.worker.settings import RunnerSettings
from roadless.worker.validation.reload import empty_model, fill, read_manifest
from roadless.worker.wheels.environment import run_with_wheel

_NO_SOURCES = DataSources()


def verify(
    folder: Path, *, sources: DataSources = _NO_SOURCES, entry_points: tuple[str, ...] = ()
) -> tuple[EvaluationReceipt, EvalResult]:
    """Return the recorded evaluation and the one made now.

    ``sources``: what data may be read from. ``entry_points``: factories that may be called.

    Sets torch's threads to the receipt's, since sums on a CPU depend on them; on another kind of
    CPU the last digits still differ. Raises CheckpointUnreadable for damaged files, and
    ValueError for a checkpoint without a receipt.
    """
    manifest = read_manifest(folder)
    if manifest.evaluation is None:
        raise ValueError(f"expected an eval checkpoint with a receipt, saw a {manifest.kind} one")
    torch.set_num_threads(manifest.evaluation.threads)
    spec = JobSpec.model_validate(manifest.spec)
    models = ModelSources(entry_points=entry_points, wheel_sha256=wheel_of_this_process())
    build = partial(build_data, model=spec.model, task=spec.task, sources=sources)
    datasets = build_datasets(spec, build=build, sources=models)
    model = empty_model(folder, spec=spec, data=datasets.description, sources=models)
    fill(model, folder, manifest)
    return manifest.evaluation, reevaluate(model, datasets=datasets, spec=spec)


def main() -> None:
    """Verify the folders named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="downloaded eval checkpoints")
    parser.add_argument("--wheel", type=Path, help="the wheel that their models come from")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable of the environment that may be used to read their data, and sent to it",
    )
    arguments = parser.parse_args()
    if missing := [name for name in arguments.secret if name not in os.environ]:
        parser.error(f"expected {', '.join(missing)} in the environment, saw none")
    settings = RunnerSettings.from_environment(os.environ)
    sources = replace(settings.data_sources, secrets=tuple(arguments.secret))
    if arguments.wheel is not None:
        folders = [str(folder) for folder in arguments.folders]
        environments = settings.scratch_here / ENVIRONMENTS
        run_with_wheel(
            arguments.wheel,
            root=environments,
            module="roadless.worker.verify",
            arguments=[*folders, *(f"--secret={name}" for name in arguments.secret)],
        )
    are_equal = [_is_equal(folder, settings, sources) for folder in arguments.folders]
    sys.exit(0 if all(are_equal) else 1)


def _is_equal(folder: Path, settings: RunnerSettings, sources: DataSources) -> bool:
    """Verify one folder and print what is seen; return whether it equals the receipt."""
    expected, seen = verify(folder, sources=sources, entry_points=settings.allowed_entry_points)
    is_equal = _digits(seen) == _digits(expected)
    said = {"expected_loss": expected.loss, "loss": seen.loss, "equal": is_equal, **seen.metrics}
    print(json.dumps(said), flush=True)  # noqa: T201  the answer
    return is_equal


def _digits(found: EvalResult | EvaluationReceipt) -> dict[str, str]:
    """Loss and metrics with all digits, as text: so NaN, which a metric may be, equals NaN."""
    return {name: repr(value) for name, value in {"loss": found.loss, **found.metrics}.items()}


if __name__ == "__main__":
    main()
