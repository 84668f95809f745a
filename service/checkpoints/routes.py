"""/v1/jobs/{id}/checkpoints and /v1/checkpoints: list, manifest, files, archive."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from roadless.service.attempts.store import require_job
from roadless.service.auth.dependencies import Project
from roadless.service.checkpoints import actions, store
from roadless.service.checkpoints.download import parse_range, tar_size, tar_stream
from roadless.service.checkpoints.keys import blob_key
from roadless.service.checkpoints.retention import delete_files, folder_of
from roadless.service.checkpoints.views import checkpoint_resource
from roadless.service.clock import utc_now
from roadless.service.contract.checkpoint.manifest import CheckpointFile, CheckpointKind, Manifest
from roadless.service.contract.resources import Checkpoint, Page
from roadless.service.db.keyset import Place
from roadless.service.db.session import Database
from roadless.service.db.tables import CheckpointRow
from roadless.service.errors import Invalid, NotFound
from roadless.service.http import conditions
from roadless.service.http.conditions import IF_MATCH, IF_NONE_MATCH, RANGE
from roadless.service.http.dependencies import Blobs, Db
from roadless.service.http.download import Archive, Download, is_head
from roadless.service.http.openapi import BYTES_CONTENT, may_refuse, with_headers
from roadless.service.http.paging import After, Limit, page_of
from roadless.service.http.routing import GuardedRoute
from roadless.service.storage.blobs import BlobStore

router = APIRouter(route_class=GuardedRoute, tags=["checkpoints"])

Best = Annotated[
    int | None,
    Query(
        ge=1, le=200, description="only this many eval checkpoints with the lowest loss, best first"
    ),
]


@router.get("/v1/jobs/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str,
    project: Project,
    db: Db,
    after: After,
    kind: CheckpointKind | None = None,
    best: Best = None,
    limit: Limit = 50,
) -> Page[Checkpoint]:
    """The job's checkpoints, newest step first, or the best first; superseded ones left out."""
    if best is not None:
        _require_alone(kind=kind, after=after)
    with db.read() as session:
        require_job(session, job_id, project)
        if best is not None:
            rows = store.best(session, job_id, count=best)
            return page_of(rows, best, view=checkpoint_resource, cursor=store.place_of)
        rows = store.page(session, job_id, kind=kind, after=after, limit=limit + 1)
        return page_of(rows, limit, view=checkpoint_resource, cursor=store.place_of)


def _require_alone(*, kind: CheckpointKind | None, after: Place | None) -> None:
    if kind is CheckpointKind.RESUME:
        raise Invalid("expected best with eval checkpoints, saw kind=resume: those have no loss")
    if after is not None:
        raise Invalid("expected best without after, since the best are one page, saw both")


@router.get("/v1/checkpoints/{checkpoint_id}")
def get_checkpoint(checkpoint_id: str, project: Project, db: Db) -> Checkpoint:
    """The manifest: every file with size and hash, the specification, how it was evaluated."""
    with db.read() as session:
        return checkpoint_resource(store.get(session, checkpoint_id, project), with_spec=True)


@router.post("/v1/checkpoints/{checkpoint_id}/pin")
def pin_checkpoint(checkpoint_id: str, project: Project, db: Db) -> Checkpoint:
    """Keep it, whatever retention says, until it is unpinned or its job is deleted."""
    with db.write() as session:
        row = actions.pin(session, checkpoint_id, project, now=utc_now())
        return checkpoint_resource(row, with_spec=True)


@router.post("/v1/checkpoints/{checkpoint_id}/unpin", responses=may_refuse(409))
def unpin_checkpoint(checkpoint_id: str, project: Project, db: Db) -> Checkpoint:
    """Leave it to retention: with the job's next checkpoint of its kind, or within the hour."""
    with db.write() as session:
        row = actions.unpin(session, checkpoint_id, project, now=utc_now())
        return checkpoint_resource(row, with_spec=True)


@router.delete("/v1/checkpoints/{checkpoint_id}", status_code=204, responses=may_refuse(409))
def delete_checkpoint(checkpoint_id: str, project: Project, db: Db, blobs: Blobs) -> None:
    """Delete it with its files; 409 while it is pinned, or a job resumes or starts from it."""
    with db.write() as session:
        row = actions.delete(session, checkpoint_id, project, now=utc_now())
        name = folder_of(row)
    delete_files([name], blobs=blobs)


@router.get(
    "/v1/checkpoints/{checkpoint_id}/files/{name}",
    response_class=Download,
    responses=with_headers(200, "Content-Disposition", description="all of it")
    | with_headers(206, "Content-Disposition", description="the range", content=BYTES_CONTENT),
    dependencies=[RANGE, IF_MATCH, IF_NONE_MATCH],
)
def get_file(
    checkpoint_id: str,
    name: str,
    project: Project,
    db: Db,
    blobs: Blobs,
    request: Request,
) -> Response:
    """One file. Takes Range; its ETag is its SHA-256."""
    row, manifest = _load(db, checkpoint_id, project)
    file = next((file for file in manifest.files if file.name == name), None)
    if file is None:
        known = ", ".join(file.name for file in manifest.files)
        raise NotFound(f"expected one of {known}, saw {name!r}")
    return _file_response(blobs, row, file, request)


def _file_response(
    blobs: BlobStore, row: CheckpointRow, file: CheckpointFile, request: Request
) -> Response:
    headers = {"ETag": f'"{file.sha256}"', "Accept-Ranges": "bytes"}
    if conditions.is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    # Range is defined for GET alone: RFC 9110, section 14.2.
    is_same = request.headers.get("if-range") in (None, headers["ETag"]) and not is_head(request)
    span = parse_range(request.headers.get("range"), file.size) if is_same else None
    start, stop = span or (0, file.size)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Disposition"] = f'attachment; filename="{file.name}"'
    chunks = blobs.read(_key(row, file), start, stop)
    return Download(
        chunks,
        size=stop - start,
        close=chunks.close,
        status_code=200 if span is None else 206,
        headers=headers,
    )


@router.get(
    "/v1/checkpoints/{checkpoint_id}/download",
    response_class=Archive,
    responses=with_headers(200, "Content-Disposition", description="a tar archive"),
)
def download(checkpoint_id: str, project: Project, db: Db, blobs: Blobs) -> Response:
    """All files and ``manifest.json`` as one tar archive."""
    row, manifest = _load(db, checkpoint_id, project)
    text = manifest.model_dump_json(indent=2).encode()
    files: list[tuple[str, int, Iterable[bytes]]] = [("manifest.json", len(text), [text])]
    with ExitStack() as opened:  # so that a file that is missing is known before the answer begins
        for file in manifest.files:
            chunks = blobs.read(_key(row, file), 0, file.size)
            opened.callback(chunks.close)
            files.append((file.name, file.size, chunks))
        close = opened.pop_all().close
    return Archive(
        tar_stream(files, modified=row.created_at),
        size=tar_size(size for _, size, _ in files),
        close=close,
        headers={"Content-Disposition": f'attachment; filename="{checkpoint_id}.tar"'},
    )


def _load(db: Database, checkpoint_id: str, project: str) -> tuple[CheckpointRow, Manifest]:
    with db.read() as session:
        row = store.get(session, checkpoint_id, project)
    return row, Manifest.model_validate(row.manifest)


def _key(row: CheckpointRow, file: CheckpointFile) -> str:
    return blob_key(row.project, row.job_id, row.id, name=file.name, sha256=file.sha256)
