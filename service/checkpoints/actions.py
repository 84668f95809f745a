"""What users can do with checkpoints. Each action is one transaction, and safe to repeat."""

from datetime import datetime

from sqlalchemy.orm import Session

from roadless.service.checkpoints import store
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.db.tables import CheckpointRow, JobRow
from roadless.service.errors import Conflict
from roadless.service.events import store as events


def pin(session: Session, checkpoint_id: str, project: str, *, now: datetime) -> CheckpointRow:
    """Have retention keep the checkpoint from now on; raises NotFound. Again: no change."""
    job, row = _locked(session, checkpoint_id, project)
    if not row.pinned:
        row.pinned = True
        _tell(session, job, row, "pinned", now=now)
    return row


def unpin(session: Session, checkpoint_id: str, project: str, *, now: datetime) -> CheckpointRow:
    """Leave the checkpoint to retention, which next checks it with its job's next checkpoint.

    Or within the hour, whichever comes first. Raises Conflict while a job's model starts from it.
    Again: no change.
    """
    job, row = _locked(session, checkpoint_id, project)
    _require_no_start(session, row)
    if row.pinned:
        row.pinned = False
        _tell(session, job, row, "unpinned", now=now)
    return row


def delete(session: Session, checkpoint_id: str, project: str, *, now: datetime) -> CheckpointRow:
    """Unlist the checkpoint, whose files are the caller's to delete.

    Raises Conflict for one that a job resumes or starts from, and for one that is pinned.
    """
    job, row = _locked(session, checkpoint_id, project)
    _require_no_start(session, row)
    if row.pinned:
        raise Conflict(f"expected a checkpoint that is not pinned, saw {row.id}; unpin it first")
    if store.is_resume_point(session, row):
        raise Conflict(
            f"expected a checkpoint that is not in use, saw the training state that {row.job_id} "
            "resumes from; wait for the next one or end the job first"
        )
    store.remove(session, row)
    _tell(session, job, row, "deleted", now=now)
    return row


def _locked(session: Session, checkpoint_id: str, project: str) -> tuple[JobRow, CheckpointRow]:
    """Lock the job, then the checkpoint, in the order that everybody uses."""
    job = store.lock_job(session, store.get(session, checkpoint_id, project).job_id)
    return job, store.get(session, checkpoint_id, project, lock=True)


def _tell(session: Session, job: JobRow, row: CheckpointRow, verb: str, *, now: datetime) -> None:
    kind = "training state" if row.kind == CheckpointKind.RESUME else "eval checkpoint"
    message = f"the {kind} of step {row.step}, {row.id}, was {verb}"
    events.add(session, job, code=f"checkpoint.{verb}", message=message, at=now)


def _require_no_start(session: Session, row: CheckpointRow) -> None:
    if (job_id := store.starting_from(session, row)) is not None:
        raise Conflict(
            f"expected a checkpoint that is not in use, saw that the model of {job_id} starts from "
            f"{row.id}; delete that job first"
        )
