"""/healthz: the process answers. /readyz: its database answers too. Both are public."""

from fastapi import APIRouter

from roadless.service.http.dependencies import Db

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process is up."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(db: Db) -> dict[str, str]:
    """Whether requests can be served: 503 while the database is away."""
    db.ping()
    return {"status": "ready"}
