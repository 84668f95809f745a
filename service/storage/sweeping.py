"""Deletes what is left over: a folder that stays keeps no other from its turn."""

import logging
from collections.abc import Iterable

from roadless.service.errors import Unavailable
from roadless.service.storage.blobs import BlobStore

log = logging.getLogger(__name__)

#: Failures in a row after which the store counts as away, and not a folder as stuck.
MAX_FAILURES = 20


def delete_each(blobs: BlobStore, folders: Iterable[str]) -> list[str]:
    """Delete these folders; return those that are gone.

    A folder may be one that the store refuses to delete, as a bucket does with an object that is
    locked. Raises Unavailable when the store does not delete at all.
    """
    deleted, num_failures = [], 0
    for folder in folders:
        try:
            blobs.delete(folder)
        except Unavailable as error:
            num_failures += 1
            log.warning("%s stays, and is deleted later: %s", folder, error)
            if num_failures == MAX_FAILURES:
                raise
        else:
            num_failures = 0
            deleted.append(folder)
    return deleted
