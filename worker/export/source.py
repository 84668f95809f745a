"""The input of an export: a downloaded eval checkpoint, its files checked, its model in float32."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.job.models import ArchitectureSpec, CheckpointModel
from roadless.service.contract.job.spec import JobSpec
from roadless.worker.checkpointing.model_files import check_files, read_model
from roadless.worker.data.base import Description
from roadless.worker.data.build import build_data
from roadless.worker.export.errors import NotExportable
from roadless.worker.model.build import build_model
from roadless.worker.model.sources import wheel_of_this_process
from roadless.worker.settings import RunnerSettings
from roadless.worker.validation.reload import read_manifest


@dataclass(frozen=True)
class Source:
    """An eval checkpoint's folder, whose files match the manifest."""

    folder: Path
    manifest: Manifest

    @property
    def spec(self) -> JobSpec:
        """The specification of the job that made it."""
        return JobSpec.model_validate(self.manifest.spec)

    @property
    def architecture(self) -> ArchitectureSpec:
        """The model's architecture, also if it started from another checkpoint."""
        model = self.spec.model
        if not isinstance(model, CheckpointModel):
            return model
        assert model.architecture is not None, "expected the service to fill it in"
        return model.architecture


@dataclass(frozen=True)
class Loaded:
    """The model in evaluation mode on the CPU, with its input and output."""

    model: nn.Module
    data: Description


def open_source(folder: Path) -> Source:
    """Return the checkpoint; raise CheckpointUnreadable, or NotExportable for a training state."""
    manifest = read_manifest(folder)
    if manifest.kind is not CheckpointKind.EVAL:
        raise NotExportable(f"expected an eval checkpoint, saw one to {manifest.kind} from")
    check_files(folder, manifest)
    return Source(folder, manifest)


def load(source: Source, *, settings: RunnerSettings) -> Loaded:
    """Return the model. Narrower weights are widened, so that it computes in float32 throughout.

    ``settings``: which entry points may be called, and for a checkpoint of an earlier release what
    data may be read. Raises the JobFailed errors of models and data.
    """
    spec, data = source.spec, _description(source, settings=settings)
    model = build_model(
        spec.model,
        data=data,
        seed=spec.training.seed,
        sources=replace(settings.model_sources, wheel_sha256=wheel_of_this_process()),
        like=source.folder,
    )
    read_model(source.folder, model)
    return Loaded(model.eval(), data)


def _description(source: Source, *, settings: RunnerSettings) -> Description:
    """From the receipt; receipts of earlier releases lack it, and the data must be read."""
    receipt, spec = source.manifest.evaluation, source.spec
    if receipt is not None and receipt.data_shape is not None:
        return Description.of_shape(receipt.data_shape)
    data = build_data(spec.data, model=spec.model, task=spec.task, sources=settings.data_sources)
    return data.description
