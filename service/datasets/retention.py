"""What is no longer needed: abandoned open data sets, and parts that none lists."""

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta

from roadless.service.datasets import store
from roadless.service.datasets.keys import dataset_folder, ids_of
from roadless.service.db.session import Database
from roadless.service.storage.blobs import LONGEST_PUT, BlobStore
from roadless.service.storage.sweeping import delete_each

#: How long an interrupted upload can be resumed.
OPEN_FOR = timedelta(days=7)
#: How long a part must have been left alone: far longer than its request lasts.
REST = timedelta(hours=1)

_BATCH = 500


def remove_unlisted_datasets(db: Database, blobs: BlobStore, *, now: datetime) -> int:
    """Delete what is left over; return how many data sets and parts. Repeatable."""
    return _drop_abandoned(db, blobs, now=now) + _drop_unlisted(db, blobs, now=now)


def _drop_abandoned(db: Database, blobs: BlobStore, *, now: datetime) -> int:
    with db.write() as session:
        rows = store.abandoned(session, before=now - OPEN_FOR, limit=_BATCH)
        for row in rows:
            store.remove(session, row)
    delete_each(blobs, [dataset_folder(row.project, row.id) for row in rows])
    return len(rows)


def _drop_unlisted(db: Database, blobs: BlobStore, *, now: datetime) -> int:
    blobs.drop_unfinished(before=now - LONGEST_PUT)
    found, num_deleted = blobs.folders(before=now - REST), 0
    while batch := list(itertools.islice(found, _BATCH)):
        num_deleted += len(delete_each(blobs, _orphans(db, batch)))
    return num_deleted


def _orphans(db: Database, names: Sequence[str]) -> list[str]:
    with db.read() as session:
        kept = store.claimed(session, [ids_of(name) for name in names])
    return [name for name in names if ids_of(name) not in kept]
