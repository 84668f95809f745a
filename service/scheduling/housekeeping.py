"""Once an hour: remove what is no longer needed, so that nothing grows for ever."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from roadless.service.checkpoints.retention import remove_superfluous, remove_unlisted
from roadless.service.clock import utc_now
from roadless.service.datasets.retention import remove_unlisted_datasets
from roadless.service.db.session import Database
from roadless.service.idempotency import store as idempotency
from roadless.service.storage.blobs import BlobStore
from roadless.service.storage.incoming import remove_abandoned_uploads
from roadless.service.wheels.retention import remove_unfinished_wheels

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
#: For how long a retried POST is recognised by its Idempotency-Key.
KEYS_KEPT = timedelta(days=7)


@dataclass(frozen=True)
class Housekeeping:
    """What is removed: keys, checkpoints that nothing keeps, orphaned files, remains of uploads."""

    db: Database
    blobs: BlobStore
    dataset_blobs: BlobStore
    wheel_blobs: BlobStore
    uploads: Path

    def clean_up(self, now: datetime) -> None:
        """Clean up once. Repeatable, and safe beside requests and other replicas.

        What fails is logged, keeps nothing else from its turn, and is tried again next time.
        """
        for what, removal in self._removals(now).items():
            try:
                num_removed = removal()
            except Exception:
                log.exception("housekeeping of %s failed; the next round tries again", what)
            else:
                if num_removed:
                    log.info("removed %d %s", num_removed, what)

    def _removals(self, now: datetime) -> dict[str, Callable[[], int]]:
        """What is removed, in order, and how; each returns how many."""
        return {
            "idempotency keys": partial(self._forget_keys, before=now - KEYS_KEPT),
            "remains of uploads": partial(remove_abandoned_uploads, self.uploads, now=now),
            "checkpoints that retention no longer keeps": partial(
                remove_superfluous, self.db, self.blobs, now=now
            ),
            "unlisted checkpoints": partial(remove_unlisted, self.db, self.blobs, now=now),
            "unlisted or abandoned data sets or parts of them": partial(
                remove_unlisted_datasets, self.db, self.dataset_blobs, now=now
            ),
            "wheels that are not whole": partial(
                remove_unfinished_wheels, self.db, self.wheel_blobs, now=now
            ),
        }

    def _forget_keys(self, *, before: datetime) -> int:
        with self.db.write() as session:
            return idempotency.forget_keys(session, before=before)

    async def run_forever(self) -> None:
        """Sweep now and once an hour until cancelled."""
        while True:
            await anyio.to_thread.run_sync(self.clean_up, utc_now())
            await asyncio.sleep(EVERY_SECONDS)
