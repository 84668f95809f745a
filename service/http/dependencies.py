"""What a route asks for: the composed parts of the running app, by type.

They are coroutines, here and elsewhere, since FastAPI sends plain functions to the threads that
users' requests share.
"""

from typing import Annotated, Any

import anyio
from fastapi import Depends, Request

from roadless.service.db.session import Database
from roadless.service.settings import Settings
from roadless.service.storage.blobs import BlobStore
from roadless.service.wakeups import Wakeups


async def _database(request: Request) -> Database:
    database: Database = request.app.state.db
    return database


Db = Annotated[Database, Depends(_database)]


async def _blobs(request: Request) -> BlobStore:
    blobs: BlobStore = request.app.state.blobs
    return blobs


Blobs = Annotated[BlobStore, Depends(_blobs)]


async def _dataset_blobs(request: Request) -> BlobStore:
    blobs: BlobStore = request.app.state.dataset_blobs
    return blobs


DatasetBlobs = Annotated[BlobStore, Depends(_dataset_blobs)]


async def _wheel_blobs(request: Request) -> BlobStore:
    blobs: BlobStore = request.app.state.wheel_blobs
    return blobs


WheelBlobs = Annotated[BlobStore, Depends(_wheel_blobs)]


def _state(request: Request, name: str) -> Any:
    return getattr(request.app.state, name)


async def _settings(request: Request) -> Settings:
    settings: Settings = _state(request, "settings")
    return settings


async def _wakeups(request: Request) -> Wakeups:
    wakeups: Wakeups = _state(request, "wakeups")
    return wakeups


async def _report_limiter(request: Request) -> anyio.CapacityLimiter:
    limiter: anyio.CapacityLimiter = _state(request, "report_limiter")
    return limiter


AppSettings = Annotated[Settings, Depends(_settings)]
Bell = Annotated[Wakeups, Depends(_wakeups)]
#: Threads kept for reports and syncs, so that slow user requests never starve a heartbeat.
ReportLimiter = Annotated[anyio.CapacityLimiter, Depends(_report_limiter)]
