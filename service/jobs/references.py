"""What a job's model refers to, looked up when the job is created: a checkpoint, a wheel.

From then on the specification carries the checkpoint's architecture and the wheel's hash; retention
keeps the checkpoint's files, and the wheel cannot be deleted while the job may run.
"""

from datetime import datetime

from pydantic import ValidationError
from sqlalchemy.orm import Session

from roadless.service.checkpoints import actions, store
from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.job.models import ArchitectureSpec, CheckpointModel, wheel_of
from roadless.service.contract.job.spec import JobSpec
from roadless.service.db.tables import CheckpointRow
from roadless.service.errors import Conflict, Invalid, NotFound
from roadless.service.wheels import actions as wheel_actions
from roadless.service.wheels import store as wheel_store

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
        raise Invalid.at(
            "/model/architecture", "expected null or that of the checkpoint, saw another"
        )
    written = spec.model_dump(mode="json")
    written["model"]["architecture"] = architecture.model_dump(mode="json")
    try:
        return JobSpec.model_validate(written)
    except ValidationError as error:
        raise Invalid.at(_POINTER, str(error.errors()[0]["msg"])) from error


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
        raise Invalid.at(
            _POINTER, f"expected a checkpoint of this project, saw {error.detail}"
        ) from error
    if row.kind != CheckpointKind.EVAL:
        raise Invalid.at(_POINTER, "expected an eval checkpoint, saw a training state")
    return row


def _architecture(row: CheckpointRow) -> ArchitectureSpec:
    """The model that the checkpoint holds; of a chain of starts, the first one's."""
    model = JobSpec.model_validate(row.manifest["spec"]).model
    found = model.architecture if isinstance(model, CheckpointModel) else model
    assert found is not None, f"expected {row.id} to tell its architecture"
    return found


def with_wheel(session: Session, spec: JobSpec, *, project: str, is_allowed: bool) -> JobSpec:
    """Return the specification with the hash of the wheel that its model comes from, if one does.

    Raises Invalid unless wheels are allowed and this is one of the project.
    """
    model = wheel_of(spec.model)
    if model is None:
        return spec
    starts = isinstance(spec.model, CheckpointModel)
    pointer = "/model/checkpoint_id" if starts else "/model/wheel"
    if not is_allowed:
        raise Invalid.at(
            pointer, f"expected no uploaded wheel, since {wheel_actions.VARIABLE} is off, saw one"
        )
    row = wheel_store.usable(session, str(model.wheel), project)
    if row is None:
        raise Invalid.at(pointer, f"expected a wheel of this project, saw {model.wheel!r}")
    if model.wheel_sha256 not in (None, row.sha256):
        raise Invalid.at(
            pointer,
            f"expected null or {row.sha256} as the hash of the wheel, saw {model.wheel_sha256}",
        )
    written = spec.model_dump(mode="json")
    place = written["model"]["architecture"] if starts else written["model"]
    place["wheel_sha256"] = row.sha256
    return JobSpec.model_validate(written)


def require_wheel(session: Session, spec: JobSpec, *, project: str) -> None:
    """Raise Conflict if the wheel of a job that is to continue was deleted."""
    model = wheel_of(spec.model)
    if model is not None and wheel_store.usable(session, str(model.wheel), project) is None:
        raise Conflict(f"expected the wheel {model.wheel} of the job's model, saw it deleted")
