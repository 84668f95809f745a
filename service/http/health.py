"""/healthz: the process answers. /readyz: it can read its database and write. Both are public."""

import asyncio
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request

from roadless.service.db.session import Database
from roadless.service.errors import Unavailable
from roadless.service.http.dependencies import state_of
from roadless.service.http.routing import GuardedRoute
from roadless.service.settings import Settings
from roadless.service.storage.disk import require_room

#: Until /readyz answers, whatever hangs.
READY_SECONDS = 3.0

router = APIRouter(route_class=GuardedRoute, tags=["health"])


class Readiness:
    """Looks whether requests can be served: one look at a time, in a thread of its own.

    Who asks while there is a look waits for that one, so however many ask and however long
    something hangs, it hangs once.
    """

    def __init__(self, db: Database, settings: Settings, *, seconds: float = READY_SECONDS) -> None:
        self._db = db
        self._settings = settings
        self._seconds = seconds
        self._thread = anyio.CapacityLimiter(1)
        self._looking: asyncio.Task[None] | None = None

    async def require(self) -> None:
        """Raise Unavailable or DiskFull unless all is well."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._in_thread())
            self._looking.add_done_callback(_heed)
        try:
            await asyncio.wait_for(asyncio.shield(self._looking), self._seconds)
        except TimeoutError as error:
            raise Unavailable(
                f"expected the database and the disks to answer within {self._seconds:g} s, "
                "saw none; try again"
            ) from error

    async def _in_thread(self) -> None:
        await anyio.to_thread.run_sync(self._look, limiter=self._thread, abandon_on_cancel=True)

    def _look(self) -> None:
        self._db.ping()
        home = self._settings.home_dir
        names = [] if self._settings.blobs else ["blobs", "datasets", "wheels"]
        stores = [home / name for name in names]
        require_room([home, self._settings.uploads_dir, *stores, *_folders(self._db.file)])


def _heed(looking: asyncio.Task[None]) -> None:
    """Its error may come when nobody waits for it any more."""
    if not looking.cancelled():
        looking.exception()


def _folders(file: Path | None) -> list[Path]:
    return [] if file is None else [file.parent]


async def _readiness(request: Request) -> Readiness:
    return state_of(request).part(Readiness)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process is up."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(readiness: Annotated[Readiness, Depends(_readiness)]) -> dict[str, str]:
    """Whether requests can be served: 503 while the database is away, or a disk is full."""
    await readiness.require()
    return {"status": "ready"}
