"""What crashes leave behind: files that no checkpoint lists and none ever will.

A file is stored before its checkpoint is listed, and removed after it is unlisted. A crash, or an
attempt that ends, in between leaves the file with nobody to name it.
"""

import contextlib
import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from service.attempts.store import require_job
from service.checkpoints import store
from service.checkpoints.blobs import BlobStore
from service.checkpoints.incoming import is_locked_by
from service.checkpoints.keys import ids_of
from service.db.session import Database
from service.errors import NotFound

#: How long a file must have been left alone: far longer than any upload pauses.
REST = timedelta(hours=1)
#: How long a store may take over one file before what it has of it counts as left behind.
LONGEST_PUT = timedelta(days=1)

_BATCH = 500


def sweep_blobs(db: Database, blobs: BlobStore, *, now: datetime) -> int:
    """Delete the files of checkpoints that are not listed; return of how many checkpoints.

    Only those of jobs that the database knows: with another database, an emptied one or that of a
    second service, these may be the files of somebody else.
    """
    blobs.drop_unfinished(before=now - LONGEST_PUT)
    before = now - REST
    found, num_deleted = blobs.folders(before=before), 0
    while batch := list(itertools.islice(found, _BATCH)):
        orphans = _orphans(db, batch, before=before)
        for name in orphans:
            blobs.delete(name)
        num_deleted += len(orphans)
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


def sweep_uploads(folder: Path, *, now: datetime) -> int:
    """Delete the remains of uploads that nobody goes on with; return how many."""
    num_deleted, before = 0, (now - REST).timestamp()
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # its upload has just ended
            if path.stat().st_mtime < before and _is_left(path):
                path.unlink()
                num_deleted += 1
    return num_deleted


def _is_left(path: Path) -> bool:
    """Whether nobody holds the file: one that has arrived may take long to be stored."""
    with path.open("rb") as file:
        return is_locked_by(file.fileno(), path)
