"""/healthz: the process answers. /readyz: it can read its database and write. Both are public."""

from pathlib import Path

from fastapi import APIRouter

from roadless.service.http.dependencies import AppSettings, Db
from roadless.service.http.routing import GuardedRoute
from roadless.service.storage.disk import require_room

router = APIRouter(route_class=GuardedRoute, tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process is up."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(db: Db, settings: AppSettings) -> dict[str, str]:
    """Whether requests can be served: 503 while the database is away, or a disk is full."""
    db.ping()
    home = settings.home_dir
    stores = [] if settings.blobs else [home / name for name in ("blobs", "datasets", "wheels")]
    require_room([home, settings.uploads_dir, *stores, *_folders(db.file)])
    return {"status": "ready"}


def _folders(file: Path | None) -> list[Path]:
    return [] if file is None else [file.parent]
