"""Rows to resources."""

from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.resources import Checkpoint
from roadless.service.db.tables import CheckpointRow


def checkpoint_resource(row: CheckpointRow, *, with_spec: bool = False) -> Checkpoint:
    """The checkpoint as the API shows it; the specification only for a single one."""
    manifest = Manifest.model_validate(row.manifest)
    return Checkpoint(
        id=row.id,
        job_id=row.job_id,
        attempt_id=row.attempt_id,
        kind=manifest.kind,
        step=row.step,
        samples=manifest.samples,
        pinned=row.pinned,
        created_at=row.created_at,
        total_bytes=manifest.total_bytes,
        evaluation=manifest.evaluation,
        spec=JobSpec.model_validate(manifest.spec) if with_spec else None,
        files=list(manifest.files),
    )
