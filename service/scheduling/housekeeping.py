"""Once an hour: remove what is no longer needed, so that nothing grows for ever."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
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
        """Clean up once. Repeatable, and safe beside requests and other replicas."""
        with self.db.write() as session:
            idempotency.forget_keys(session, before=now - KEYS_KEPT)
        num_uploads = remove_abandoned_uploads(self.uploads, now=now)
        num_superfluous = remove_superfluous(self.db, self.blobs, now=now)
        num_checkpoints = remove_unlisted(self.db, self.blobs, now=now)
        num_datasets = remove_unlisted_datasets(self.db, self.dataset_blobs, now=now)
        num_wheels = remove_unfinished_wheels(self.db, self.wheel_blobs, now=now)
        if num_uploads or num_superfluous or num_checkpoints or num_datasets or num_wheels:
            log.info(
                "removed the remains of %d uploads, %d checkpoints that retention no longer keeps, "
                "the files of %d unlisted ones, and %d unlisted or abandoned data sets or parts of "
                "them, and %d wheels that are not whole",
                num_uploads,
                num_superfluous,
                num_checkpoints,
                num_datasets,
                num_wheels,
            )

    async def run_forever(self) -> None:
        """Sweep now and once an hour until cancelled."""
        while True:
            try:
                await anyio.to_thread.run_sync(self.clean_up, utc_now())
            except Exception:
                log.exception("housekeeping failed; the next round tries again")
            await asyncio.sleep(EVERY_SECONDS)
