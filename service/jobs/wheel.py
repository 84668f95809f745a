"""The uploaded wheel that a job's model comes from: looked up when the job is made or opened again.

From then on the specification carries its hash, and it cannot be deleted while the job may run.
"""

from sqlalchemy.orm import Session

from service.contract.models import CheckpointModel, wheel_of
from service.contract.resources import ProblemError
from service.contract.spec import JobSpec
from service.errors import Conflict, Invalid
from service.wheels import actions, store


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
        raise _invalid(
            pointer, f"expected no uploaded wheel, since {actions.VARIABLE} is off, saw one"
        )
    row = store.usable(session, str(model.wheel), project)
    if row is None:
        raise _invalid(pointer, f"expected a wheel of this project, saw {model.wheel!r}")
    if model.wheel_sha256 not in (None, row.sha256):
        raise _invalid(pointer, f"expected null or {row.sha256} as the hash of the wheel")
    written = spec.model_dump(mode="json")
    place = written["model"]["architecture"] if starts else written["model"]
    place["wheel_sha256"] = row.sha256
    return JobSpec.model_validate(written)


def require_wheel(session: Session, spec: JobSpec, *, project: str) -> None:
    """Raise Conflict when the wheel of a job that shall go on was deleted."""
    model = wheel_of(spec.model)
    if model is not None and store.usable(session, str(model.wheel), project) is None:
        raise Conflict(f"expected the wheel {model.wheel} of the job's model, saw it deleted")


def _invalid(pointer: str, message: str) -> Invalid:
    return Invalid(
        f"{pointer}: {message}", errors=(ProblemError(pointer=pointer, message=message),)
    )
