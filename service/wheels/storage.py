"""From an uploaded file to a wheel that jobs may use: checked, announced, stored, listed.

The row comes first, so that the remains of an interruption are found and removed.
"""

from roadless.service.db.session import Database
from roadless.service.db.tables import WheelRow
from roadless.service.errors import Unavailable
from roadless.service.storage.blobs import BlobStore
from roadless.service.wheels import actions, store
from roadless.service.wheels.inspection import facts_of_name, inspect
from roadless.service.wheels.keys import folder_of, key_of
from roadless.service.wheels.upload import UploadedWheel


def store_wheel(
    uploaded: UploadedWheel, *, db: Database, blobs: BlobStore, project: str, file_name: str
) -> tuple[WheelRow, bool]:
    """Return the wheel, and whether it is new; raises Invalid if it is not a wheel."""
    facts = facts_of_name(file_name)
    inspect(uploaded.path, file_name=file_name)
    with db.write() as session:
        row, is_new = actions.announce(
            session,
            facts,
            project=project,
            file_name=file_name,
            size=uploaded.size,
            sha256=uploaded.sha256,
        )
    if not is_new:
        return row, False
    blobs.put(key_of(row), uploaded.path)
    listed = _list(db, row)
    if listed.id != row.id:
        blobs.delete(folder_of(row))
    return listed, listed.id == row.id


def _list(db: Database, stored: WheelRow) -> WheelRow:
    """Return the wheel that is listed: another one if the same was uploaded twice at once."""
    with db.write() as session:
        rows = store.alike(session, stored)
        row = next((row for row in rows if row.id == stored.id), None)
        if row is None:
            raise Unavailable("storing the wheel took too long and it was removed; try again")
        first = next((other for other in rows if other.is_stored), None)
        if first is not None:
            store.remove(session, row)
            return first
        row.is_stored = True
        return row
