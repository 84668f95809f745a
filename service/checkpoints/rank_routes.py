"""The ranks' side: upload a checkpoint's files, fetch the state to resume from."""

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Path, Request, Response

from roadless.service.attempts.access import AttemptToken, open_attempt
from roadless.service.checkpoints import store
from roadless.service.checkpoints.keys import blob_key
from roadless.service.contract.checkpoint.manifest import FILE_NAME_PATTERN, Manifest
from roadless.service.contract.ids import CHECKPOINT_ID_PATTERN
from roadless.service.db.session import Database
from roadless.service.errors import Invalid, NotFound
from roadless.service.http.dependencies import AppSettings, Blobs, Db, ReportLimiter, StoringLimiter
from roadless.service.http.download import Download
from roadless.service.http.openapi import BYTES_BODY, with_headers
from roadless.service.http.routing import GuardedRoute
from roadless.service.storage.intake import Arrived, Intake, Target

router = APIRouter(
    route_class=GuardedRoute,
    prefix="/internal/v1/attempts/{attempt_id}/checkpoints/{checkpoint_id}/files/{name}",
    tags=["ranks"],
)

CheckpointId = Annotated[str, Path(pattern=CHECKPOINT_ID_PATTERN)]
Name = Annotated[str, Path(pattern=FILE_NAME_PATTERN)]
Sha256 = Annotated[str, Header(alias="X-Content-SHA256", pattern="^[0-9a-f]{64}$")]
Offset = Annotated[int | None, Header(alias="Upload-Offset", ge=0)]
Length = Annotated[int | None, Header(alias="Upload-Length", ge=1)]


async def _target(
    checkpoint_id: CheckpointId,
    name: Name,
    token: AttemptToken,
    db: Db,
    limiter: ReportLimiter,
    x_content_sha256: Sha256,
) -> Target:
    project, job_id = await anyio.to_thread.run_sync(_place, db, token, limiter=limiter)
    key = blob_key(project, job_id, checkpoint_id, name=name, sha256=x_content_sha256)
    return Target(key, x_content_sha256)


def _place(db: Database, token: str) -> tuple[str, str]:
    with db.read() as session:
        attempt = open_attempt(session, token)
        return attempt.project, attempt.job_id


async def _intake(blobs: Blobs, settings: AppSettings, limiter: StoringLimiter) -> Intake:
    return Intake(settings.uploads_dir, blobs, settings.max_file_bytes, limiter)


TheTarget = Annotated[Target, Depends(_target)]
TheIntake = Annotated[Intake, Depends(_intake)]
_ARRIVED = with_headers(
    204, "Upload-Offset", "Upload-Complete", description="how much has arrived; of a part"
)


@router.put("", status_code=204, responses=_ARRIVED, openapi_extra=BYTES_BODY)
async def upload(
    target: TheTarget,
    intake: TheIntake,
    request: Request,
    response: Response,
    upload_offset: Offset = None,
    upload_length: Length = None,
) -> None:
    """Store one file under its hash. It is listed only when the checkpoint event arrives.

    With Upload-Offset and Upload-Length the body is a part: the bytes from there on. The length is
    that of the whole file.
    """
    if upload_offset is None and upload_length is None:
        await intake.take(request.stream(), target)
        return
    if upload_offset is None or upload_length is None or upload_offset > upload_length:
        raise Invalid(
            "expected Upload-Offset and Upload-Length, the first no greater, "
            f"saw {upload_offset} and {upload_length}"
        )
    arrived = await intake.take_part(
        request.stream(), target, offset=upload_offset, length=upload_length
    )
    response.headers.update(_told(arrived))


@router.head("", status_code=204, responses=_ARRIVED)
def look(target: TheTarget, intake: TheIntake, response: Response) -> None:
    """How much of a file has arrived, so that its upload resumes there."""
    response.headers.update(_told(intake.arrived(target)))


def _told(arrived: Arrived) -> dict[str, str]:
    """The headers of draft-ietf-httpbis-resumable-upload."""
    complete = "?1" if arrived.is_stored else "?0"
    return {"Upload-Offset": str(arrived.num_bytes), "Upload-Complete": complete}


@router.get("", response_class=Download)
def fetch(
    checkpoint_id: CheckpointId, name: Name, token: AttemptToken, db: Db, blobs: Blobs
) -> Download:
    """One file of a checkpoint of the attempt's job, or of the one that its model starts from."""
    with db.read() as session:
        attempt = open_attempt(session, token)
        row = store.get_for_attempt(session, checkpoint_id, attempt)
    file = next((f for f in Manifest.model_validate(row.manifest).files if f.name == name), None)
    if file is None:
        raise NotFound.by_id("file", name, of=f"checkpoint {checkpoint_id}", listed="its manifest")
    key = blob_key(row.project, row.job_id, row.id, name=file.name, sha256=file.sha256)
    chunks = blobs.read(key, 0, file.size)
    return Download(chunks, size=file.size, close=chunks.close)
