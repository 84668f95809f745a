"""Deletes checkpoints: hourly what retention no longer keeps, and files after their rows.

Retention runs whenever a job saves a checkpoint. This catches what changes with time: checkpoints
that grow too old, and those that were unpinned.
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from roadless.service.attempts.store import require_job
from roadless.service.checkpoints import store
from roadless.service.checkpoints.keys import folder, ids_of
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.db.session import Database
from roadless.service.db.tables import CheckpointRow
from roadless.service.errors import NotFound, Unavailable
from roadless.service.storage.blobs import LONGEST_PUT, REST, BlobStore
from roadless.service.storage.sweeping import delete_each

log = logging.getLogger(__name__)

#: How many jobs are checked together.
_JOBS_TOGETHER = 200
#: How many folders of the blob store are checked together.
_FOLDERS_TOGETHER = 500


def remove_unlisted(db: Database, blobs: BlobStore, *, now: datetime) -> int:
    """Delete the files of checkpoints that are not listed; return how many checkpoints.

    Only those of jobs that the database knows: with another database, an emptied one or that of a
    second service, the others may belong to somebody else.
    """
    blobs.drop_unfinished(before=now - LONGEST_PUT)
    before = now - REST
    found, num_deleted = blobs.folders(before=before), 0
    while batch := list(itertools.islice(found, _FOLDERS_TOGETHER)):
        orphans = _orphans(db, batch, before=before)
        num_deleted += len(delete_each(blobs, orphans))
    return num_deleted


def _orphans(db: Database, names: Sequence[str], *, before: datetime) -> list[str]:
    with db.read() as session:
        kept = store.claimed(session, [ids_of(name) for name in names], since=before)
        orphans = [name for name in names if ids_of(name) not in kept]
        return [name for name in orphans if _is_of_known_job(session, name)]


def _is_of_known_job(session: Session, name: str) -> bool:
    project, job_id, _ = name.split("/")
    try:
        require_job(session, job_id, project)
    except NotFound:
        return False
    return True


def remove_superfluous(db: Database, blobs: BlobStore, *, now: datetime) -> int:
    """Delete what retention no longer keeps, of all jobs, ended or not; return how many."""
    num_deleted, after = 0, ""
    while True:
        with db.read() as session:
            policies = store.policies(session, after=after, limit=_JOBS_TOGETHER)
            overdue = store.overdue(session, policies, now=now)
        if not policies:
            return num_deleted
        for job_id, kind in overdue:
            num_deleted += _remove_of_job(db, blobs, job_id, kind, now=now)
        *_, after = policies


def _remove_of_job(
    db: Database, blobs: BlobStore, job_id: str, kind: CheckpointKind, *, now: datetime
) -> int:
    """One short transaction, so that no report waits for long; a busy job's turn comes later."""
    with db.write() as session:
        policy = store.idle_policy(session, job_id)
        if policy is None:
            return 0
        rows = store.drop_superfluous(session, job_id, kind=kind, policy=policy, now=now)
    delete_files((folder_of(row) for row in rows), blobs=blobs)
    return len(rows)


def folder_of(row: CheckpointRow) -> str:
    """Where the checkpoint's files are."""
    return folder(row.project, row.job_id, row.id)


def delete_files(folders: Iterable[str], *, blobs: BlobStore) -> None:
    """Delete the files of checkpoints no longer listed; housekeeping deletes what is left."""
    try:
        for name in folders:
            blobs.delete(name)
    except Unavailable as error:
        # The request has succeeded: the rows are gone, so this is no error for the user.
        log.warning("checkpoint files are deleted later: %s", error)
