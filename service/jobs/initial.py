"""The checkpoint that a job's model starts from: looked up once, when the job is made.

From then on the specification carries the architecture itself, and retention keeps the files.
"""

from datetime import datetime

from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.checkpoints import actions, store
from service.contract.manifest import CheckpointKind, Manifest
from service.contract.models import ArchitectureSpec, CheckpointModel
from service.contract.resources import ProblemError
from service.contract.spec import JobSpec
from service.db.tables import CheckpointRow
from service.errors import Invalid, NotFound

_POINTER = "/model/checkpoint_id"


def with_architecture(session: Session, spec: JobSpec, *, project: str, now: datetime) -> JobSpec:
    """Return the specification with the architecture of the checkpoint that it starts from, if any.

    Raises Invalid unless that is an eval checkpoint of the project whose model can do the task.
    """
    model = spec.model
    if not isinstance(model, CheckpointModel):
        return spec
    architecture = _architecture(_pinned(session, model.checkpoint_id, project, now=now))
    if model.architecture not in (None, architecture):
        raise _invalid(
            "/model/architecture", "expected null or that of the checkpoint, saw another"
        )
    written = spec.model_dump(mode="json")
    written["model"]["architecture"] = architecture.model_dump(mode="json")
    try:
        return JobSpec.model_validate(written)
    except ValidationError as error:
        raise _invalid(_POINTER, str(error.errors()[0]["msg"])) from error


def initial_manifest(session: Session, spec: JobSpec, *, project: str) -> Manifest | None:
    """Return the manifest of the checkpoint that the job's model starts from, if it does."""
    if not isinstance(spec.model, CheckpointModel):
        return None
    row = store.get(session, spec.model.checkpoint_id, project)
    return Manifest.model_validate(row.manifest)


def _pinned(session: Session, checkpoint_id: str, project: str, *, now: datetime) -> CheckpointRow:
    try:
        row = actions.pin(session, checkpoint_id, project, now=now)
    except NotFound as error:
        raise _invalid(
            _POINTER, f"expected a checkpoint of this project, saw {error.detail}"
        ) from error
    if row.kind != CheckpointKind.EVAL:
        raise _invalid(_POINTER, f"expected an eval checkpoint, saw one to {row.kind} from")
    return row


def _architecture(row: CheckpointRow) -> ArchitectureSpec:
    """The model that the checkpoint holds; of a chain of starts, the first one's."""
    model = JobSpec.model_validate(row.manifest["spec"]).model
    found = model.architecture if isinstance(model, CheckpointModel) else model
    assert found is not None, f"expected {row.id} to tell its architecture"
    return found


def _invalid(pointer: str, message: str) -> Invalid:
    return Invalid(
        f"{pointer}: {message}", errors=(ProblemError(pointer=pointer, message=message),)
    )
