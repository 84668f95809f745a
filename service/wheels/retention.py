"""What crashes leave behind: wheels whose upload or deletion was interrupted."""

from datetime import datetime, timedelta

from roadless.service.db.session import Database
from roadless.service.storage.blobs import LONGEST_PUT, BlobStore
from roadless.service.storage.sweeping import delete_each
from roadless.service.wheels import store
from roadless.service.wheels.keys import folder_of

#: How long storing a wheel may take: far longer than one upload lasts.
REST = timedelta(hours=1)

_BATCH = 500


def remove_unfinished_wheels(db: Database, blobs: BlobStore, *, now: datetime) -> int:
    """Delete what is left over; return how many wheels. Repeatable."""
    blobs.drop_unfinished(before=now - LONGEST_PUT)
    with db.read() as session:
        rows = store.unfinished(session, before=now - REST, limit=_BATCH)
    deleted = set(delete_each(blobs, map(folder_of, rows)))
    gone = [row for row in rows if folder_of(row) in deleted]
    for row in gone:
        with db.write() as session:
            if (found := store.locked(session, row.id)) is not None and not found.is_stored:
                store.remove(session, found)
    return len(gone)
