"""Once an hour: remove what is no longer needed, so that nothing grows for ever."""

import asyncio
import logging
from collections.abc import Callable, Mapping
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
from roadless.service.db.sqlite import give_back
from roadless.service.idempotency import store as idempotency
from roadless.service.jobs.deletion import remove_deleted_jobs
from roadless.service.storage.blobs import BlobStore
from roadless.service.storage.incoming import remove_abandoned_uploads
from roadless.service.wheels.retention import remove_unfinished_wheels

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
#: The same, for jobs that users have deleted.
DELETED_JOBS_EVERY_SECONDS = 60.0
#: For how long a retried POST is recognised by its Idempotency-Key.
KEYS_KEPT = timedelta(days=7)


@dataclass(frozen=True)
class Housekeeping:
    """What is removed: keys, deleted jobs, checkpoints that nothing keeps, remains of uploads."""

    db: Database
    blobs: BlobStore
    dataset_blobs: BlobStore
    wheel_blobs: BlobStore
    uploads: Path

    def clean_up(self, now: datetime) -> None:
        """Clean up once. Repeatable, and safe beside requests and other replicas.

        What fails is logged, keeps nothing else from its turn, and is tried again next time.
        """
        self._do(self._removals(now))

    def remove_deleted_jobs(self) -> None:
        """The part of it that users wait for: rows, files and space of jobs that they deleted."""
        self._do(self._removals_of_jobs())

    def _do(self, removals: Mapping[str, Callable[[], int]]) -> None:
        for what, removal in removals.items():
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
            **self._removals_of_jobs(),
        }

    def _removals_of_jobs(self) -> dict[str, Callable[[], int]]:
        return {
            "deleted jobs": partial(remove_deleted_jobs, self.db, self.blobs),
            "bytes of free space in the database": self._give_back,
        }

    def _forget_keys(self, *, before: datetime) -> int:
        num_forgotten, num_more = 0, -1
        while num_more != 0:
            with self.db.write() as session:
                num_more = idempotency.forget_some_keys(session, before=before)
            num_forgotten += num_more
        return num_forgotten

    def _give_back(self) -> int:
        return 0 if self.db.file is None else give_back(self.db.engine, self.db.turn)

    async def run_forever(self) -> None:
        """Sweep now and once an hour until cancelled; what users delete goes within a minute."""
        while True:
            await anyio.to_thread.run_sync(self.clean_up, utc_now())
            for _ in range(int(EVERY_SECONDS // DELETED_JOBS_EVERY_SECONDS)):
                await asyncio.sleep(DELETED_JOBS_EVERY_SECONDS)
                await anyio.to_thread.run_sync(self.remove_deleted_jobs)
