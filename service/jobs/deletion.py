"""Removes what belongs to jobs that users have deleted: files first, then rows, in batches.

It begins with the request that deletes, and housekeeping does what that leaves. Every part may be
done twice, and by several replicas at once.
"""

import logging
import math
import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from roadless.service.attempts import store as attempts
from roadless.service.checkpoints import store as checkpoints
from roadless.service.checkpoints.keys import job_folder
from roadless.service.db.session import Database
from roadless.service.errors import Unavailable
from roadless.service.evaluations import store as evaluations
from roadless.service.events import store as events
from roadless.service.jobs import store
from roadless.service.metrics import store as metrics
from roadless.service.storage.blobs import BlobStore

log = logging.getLogger(__name__)

#: For how long the request itself deletes: all that most jobs have.
SECONDS_AT_ONCE = 1.0
#: Batches of one job in one round of housekeeping.
BATCHES_PER_ROUND = 100_000
#: Deleted jobs that one round of housekeeping removes.
JOBS_PER_ROUND = 1000

#: Each deletes some rows of the job and says whether there may be more; in order of reference.
_PARTS: tuple[Callable[[Session, str], bool], ...] = (
    events.delete_some_of_job,
    metrics.delete_some_of_job,
    evaluations.delete_some_of_job,
    checkpoints.delete_some_of_job,
    attempts.delete_some_of_job,
    store.delete_job,
)


def begin(db: Database, blobs: BlobStore, job_id: str, project: str) -> None:
    """Remove a deleted job as far as a request may take; housekeeping does the rest."""
    try:
        if not remove(db, blobs, job_id, project, seconds=SECONDS_AT_ONCE):
            log.info("what is left of the deleted job %s is removed in the background", job_id)
    except Unavailable as error:
        # The request has succeeded: the job is gone for its user.
        log.warning("what is left of the deleted job %s is removed later: %s", job_id, error)


def remove_deleted_jobs(db: Database, blobs: BlobStore) -> int:
    """Remove what is left of jobs that users have deleted; return how many are gone."""
    with db.read() as session:
        found = store.deleted(session, limit=JOBS_PER_ROUND)
    return sum(_is_removed(db, blobs, job_id, project) for job_id, project in found)


def _is_removed(db: Database, blobs: BlobStore, job_id: str, project: str) -> bool:
    try:
        return remove(db, blobs, job_id, project)
    except Unavailable as error:  # a folder may be one that its store keeps: the next job's turn
        log.warning("what is left of the deleted job %s is removed later: %s", job_id, error)
        return False


def remove(
    db: Database, blobs: BlobStore, job_id: str, project: str, *, seconds: float = math.inf
) -> bool:
    """Remove a deleted job's files, and rows for so long; return whether it is gone."""
    blobs.delete(job_folder(project, job_id))
    return remove_rows(db, job_id, seconds=seconds)


def remove_rows(
    db: Database,
    job_id: str,
    *,
    max_batches: int = BATCHES_PER_ROUND,
    seconds: float = math.inf,
) -> bool:
    """Remove some batches of a deleted job's rows; return whether all are gone.

    After each batch it rests for as long as that took, so that others have their turns.
    """
    parts, deadline = list(_PARTS), time.monotonic() + seconds
    for _ in range(max_batches):
        began = time.monotonic()
        if began >= deadline:
            return False
        with db.write() as session:
            has_more = parts[0](session, job_id)
        if not has_more:
            parts.pop(0)
        if not parts:
            return True
        time.sleep(time.monotonic() - began)
    return False
