"""What users can do with checkpoints. Each action is one transaction, and safe to repeat."""

from sqlalchemy.orm import Session

from service.checkpoints import store
from service.db.tables import CheckpointRow
from service.errors import Conflict


def pin(session: Session, checkpoint_id: str, project: str) -> CheckpointRow:
    """Have retention keep the checkpoint from now on; raises NotFound. Again: no change."""
    row = store.get(session, checkpoint_id, project, lock=True)
    row.pinned = True
    return row


def unpin(session: Session, checkpoint_id: str, project: str) -> CheckpointRow:
    """Leave the checkpoint to retention, which next looks at it with its job's next checkpoint.

    Or within the hour, whichever comes first. Raises Conflict while a job's model starts from it.
    Again: no change.
    """
    row = store.get(session, checkpoint_id, project, lock=True)
    _require_no_start(session, row)
    row.pinned = False
    return row


def delete(session: Session, checkpoint_id: str, project: str) -> CheckpointRow:
    """Unlist the checkpoint, whose files are the caller's to delete.

    Raises Conflict for one that a job goes on or starts from, and for one that is pinned.
    """
    # The job first, as everywhere: no attempt of it can begin with this state meanwhile.
    store.lock_job(session, store.get(session, checkpoint_id, project).job_id)
    row = store.get(session, checkpoint_id, project, lock=True)
    _require_no_start(session, row)
    if row.pinned:
        raise Conflict(f"expected a checkpoint that is not pinned, saw {row.id}; unpin it first")
    if store.is_resume_point(session, row):
        raise Conflict(
            f"expected a checkpoint that nothing needs, saw the training state that {row.job_id} "
            "goes on from; wait for the next one, or end the job first"
        )
    store.remove(session, row)
    return row


def _require_no_start(session: Session, row: CheckpointRow) -> None:
    if (job_id := store.starting_from(session, row)) is not None:
        raise Conflict(
            f"expected a checkpoint that nothing needs, saw that the model of {job_id} starts from "
            f"{row.id}; delete that job first"
        )
