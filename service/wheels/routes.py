"""/v1/wheels: upload, list, get, delete; and the ranks' side."""

from functools import partial
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Path, Request, Response

from roadless.service.attempts.access import AttemptToken, open_attempt
from roadless.service.auth.dependencies import Project
from roadless.service.contract.ids import WHEEL_ID_PATTERN
from roadless.service.contract.resources import Page
from roadless.service.contract.uploads.wheels import FILE_NAME_LENGTH, WHEEL_NAME_PATTERN, Wheel
from roadless.service.db.keyset import place_of
from roadless.service.db.session import Database
from roadless.service.errors import NotFound
from roadless.service.http.dependencies import AppSettings, Db, StoringLimiter, WheelBlobs
from roadless.service.http.download import Download
from roadless.service.http.openapi import BYTES_BODY, may_refuse
from roadless.service.http.paging import After, Limit, page_of
from roadless.service.http.routing import GuardedRoute
from roadless.service.wheels import actions, store
from roadless.service.wheels.inspection import facts_of_name
from roadless.service.wheels.keys import folder_of, key_of
from roadless.service.wheels.storage import store_wheel
from roadless.service.wheels.upload import receive_wheel
from roadless.service.wheels.views import wheel_resource

router = APIRouter(route_class=GuardedRoute, prefix="/v1/wheels", tags=["wheels"])
rank_router = APIRouter(
    route_class=GuardedRoute, prefix="/internal/v1/attempts/{attempt_id}/wheel", tags=["ranks"]
)

WheelId = Annotated[str, Path(pattern=WHEEL_ID_PATTERN)]
FileName = Annotated[str, Path(pattern=WHEEL_NAME_PATTERN, max_length=FILE_NAME_LENGTH)]
Sha256 = Annotated[str, Header(alias="X-Content-SHA256", pattern="^[0-9a-f]{64}$")]

# ---- users --------------------------------------------------------------------------------------


@router.put(
    "/{file_name}",
    status_code=201,
    responses={
        200: {"model": Wheel, "description": "the same one, known"},
        **may_refuse(403, 409),
    },
    openapi_extra=BYTES_BODY,
)
async def put_wheel(
    file_name: FileName,
    project: Project,
    db: Db,
    blobs: WheelBlobs,
    settings: AppSettings,
    limiter: StoringLimiter,
    request: Request,
    response: Response,
    x_content_sha256: Sha256,
) -> Wheel:
    """Receive a wheel and check it. The same one again: 200, and no second one."""
    actions.require_allowed(settings.allow_wheels)
    facts_of_name(file_name)  # before the body is read
    await anyio.to_thread.run_sync(_require_room, db, project)
    async with receive_wheel(
        request, folder=settings.uploads_dir, sha256=x_content_sha256
    ) as uploaded:
        work = partial(
            store_wheel, uploaded, db=db, blobs=blobs, project=project, file_name=file_name
        )
        row, is_new = await anyio.to_thread.run_sync(work, limiter=limiter)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/wheels/{row.id}"
    return wheel_resource(row)


def _require_room(db: Database, project: str) -> None:
    """Refuse early, before the body is read, most of what would be refused."""
    with db.read() as session:
        actions.require_room(session, project)


@router.get("")
def list_wheels(project: Project, db: Db, after: After, limit: Limit = 50) -> Page[Wheel]:
    """The project's wheels, newest first."""
    with db.read() as session:
        rows = store.page(session, project, after=after, limit=limit + 1)
    return page_of(rows, limit, view=wheel_resource, cursor=place_of)


@router.get("/{wheel_id}")
def get_wheel(wheel_id: WheelId, project: Project, db: Db) -> Wheel:
    """One wheel."""
    with db.read() as session:
        return wheel_resource(store.get(session, wheel_id, project))


@router.delete("/{wheel_id}", status_code=204, responses=may_refuse(409))
def delete_wheel(wheel_id: WheelId, project: Project, db: Db, blobs: WheelBlobs) -> None:
    """Delete it; 409 while a job that has not ended uses it."""
    with db.write() as session:
        row = store.get(session, wheel_id, project, lock=True)
        actions.withdraw(session, row)
    blobs.delete(folder_of(row))
    with db.write() as session:
        if (left := store.locked(session, wheel_id)) is not None:
            store.remove(session, left)


# ---- ranks --------------------------------------------------------------------------------------


@rank_router.get("", response_class=Download, responses=may_refuse(404))
def get_content(token: AttemptToken, db: Db, blobs: WheelBlobs) -> Download:
    """The wheel that the model of the attempt's own job comes from."""
    with db.read() as session:
        attempt = open_attempt(session, token)
        row = store.of_job(session, attempt.job_id)
    if row is None or row.project != attempt.project:
        raise NotFound("the model of this job has no wheel, or the wheel was deleted")
    chunks = blobs.read(key_of(row), 0, row.size)
    return Download(chunks, size=row.size, close=chunks.close)
