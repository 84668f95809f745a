"""What routes depend on: the parts of the running app, by type.

The dependencies are coroutines, here and elsewhere, since FastAPI sends plain functions to the
threads that users' requests share.
"""

from typing import Annotated, Any, TypeVar, cast

import anyio
from fastapi import Depends, Request
from starlette.datastructures import State

from roadless.service.db.session import Database
from roadless.service.settings import Settings
from roadless.service.storage.blobs import BlobStore
from roadless.service.wakeups import Wakeups

Part = TypeVar("Part")


class AppState(State):
    """What the app is composed of; ``service/main.py`` fills it in.

    Parts whose types belong to packages above this one are found by their type.
    """

    settings: Settings
    db: Database
    blobs: BlobStore
    dataset_blobs: BlobStore
    wheel_blobs: BlobStore
    wakeups: Wakeups
    report_limiter: anyio.CapacityLimiter
    blob_limiter: anyio.CapacityLimiter
    storing_limiter: anyio.CapacityLimiter
    parts: dict[type[Any], Any]
    parsing_limiter: anyio.CapacityLimiter

    def __init__(self) -> None:
        super().__init__()
        self.parts = {}

    def add(self, kind: type[Part], part: Part) -> None:
        """Provide the part of this type."""
        self.parts[kind] = part

    def part(self, kind: type[Part]) -> Part:
        """The part of this type."""
        return cast("Part", self.parts[kind])


def state_of(request: Request) -> AppState:
    """The parts of the app that answers the request."""
    return cast("AppState", request.app.state)


async def _settings(request: Request) -> Settings:
    return state_of(request).settings


async def _database(request: Request) -> Database:
    return state_of(request).db


async def _blobs(request: Request) -> BlobStore:
    return state_of(request).blobs


async def _dataset_blobs(request: Request) -> BlobStore:
    return state_of(request).dataset_blobs


async def _wheel_blobs(request: Request) -> BlobStore:
    return state_of(request).wheel_blobs


async def _wakeups(request: Request) -> Wakeups:
    return state_of(request).wakeups


async def _report_limiter(request: Request) -> anyio.CapacityLimiter:
    return state_of(request).report_limiter


async def _blob_limiter(request: Request) -> anyio.CapacityLimiter:
    return state_of(request).blob_limiter


async def _storing_limiter(request: Request) -> anyio.CapacityLimiter:
    return state_of(request).storing_limiter


AppSettings = Annotated[Settings, Depends(_settings)]
Db = Annotated[Database, Depends(_database)]
Blobs = Annotated[BlobStore, Depends(_blobs)]
DatasetBlobs = Annotated[BlobStore, Depends(_dataset_blobs)]
WheelBlobs = Annotated[BlobStore, Depends(_wheel_blobs)]
Bell = Annotated[Wakeups, Depends(_wakeups)]
#: Threads reserved for reports and syncs, so that slow user requests never starve a heartbeat.
ReportLimiter = Annotated[anyio.CapacityLimiter, Depends(_report_limiter)]
#: Threads of reports that ask the blob store something, which may be slow or away.
BlobLimiter = Annotated[anyio.CapacityLimiter, Depends(_blob_limiter)]
#: Threads that check and store whole files.
StoringLimiter = Annotated[anyio.CapacityLimiter, Depends(_storing_limiter)]
