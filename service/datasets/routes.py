"""/v1/datasets: create, upload in parts, seal, list, get, delete; and the ranks' side."""

from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from roadless.service.attempts.access import AttemptToken, open_attempt
from roadless.service.auth.dependencies import Project
from roadless.service.contract.checkpoint.manifest import FILE_NAME_PATTERN
from roadless.service.contract.ids import DATASET_ID_PATTERN
from roadless.service.contract.resources import Page
from roadless.service.contract.uploads.datasets import (
    Dataset,
    DatasetContent,
    DatasetFile,
    DatasetPart,
    DatasetState,
    FileSummary,
    NewDataset,
)
from roadless.service.datasets import actions, parts, store
from roadless.service.datasets.keys import dataset_folder, part_key
from roadless.service.datasets.views import dataset_resource, file_summary
from roadless.service.db.keyset import place_of
from roadless.service.db.session import Database
from roadless.service.db.tables import DatasetRow
from roadless.service.errors import NotFound
from roadless.service.http.dependencies import AppSettings, DatasetBlobs, Db
from roadless.service.http.download import Download
from roadless.service.http.openapi import BYTES_BODY, may_refuse
from roadless.service.http.paging import After, Limit, page_of
from roadless.service.http.routing import GuardedRoute
from roadless.service.idempotency.once import REPLAYED, IdempotencyKey, once
from roadless.service.storage.blobs import BlobStore

router = APIRouter(route_class=GuardedRoute, prefix="/v1/datasets", tags=["datasets"])
rank_router = APIRouter(
    route_class=GuardedRoute, prefix="/internal/v1/attempts/{attempt_id}/datasets", tags=["ranks"]
)

DatasetId = Annotated[str, Path(pattern=DATASET_ID_PATTERN)]
FileName = Annotated[str, Path(pattern=FILE_NAME_PATTERN)]
Offset = Annotated[
    int, Query(ge=0, lt=2**62, description="offset of the part's first byte in the file")
]
Sha256 = Annotated[str, Header(alias="X-Content-SHA256", pattern="^[0-9a-f]{64}$")]

# ---- users --------------------------------------------------------------------------------------


@router.post(
    "",
    status_code=201,
    response_model=Dataset,
    responses={200: {"model": Dataset, "description": "the open one of this name"}},
)
def create_dataset(
    asked: NewDataset, project: Project, db: Db, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Open a data set for files; 200 and the same one while one of this name is open."""

    def act(session: Session) -> dict[str, Any]:
        row, is_new = actions.create(session, asked, project=project)
        size = store.sizes(session, [row.id]).get(row.id, (0, 0))
        dataset = dataset_resource(row, size=size).model_dump(mode="json")
        return {"status": 201 if is_new else 200, "dataset": dataset}

    answer, replayed = once(
        db,
        act,
        project=project,
        key=idempotency_key,
        request=f"{router.prefix}\n{asked.model_dump_json()}",
    )
    location = {"Location": f"{router.prefix}/{answer['dataset']['id']}"}
    headers = location | (REPLAYED if replayed else {})
    return JSONResponse(answer["dataset"], answer["status"], headers=headers)


@router.get("")
def list_datasets(project: Project, db: Db, after: After, limit: Limit = 50) -> Page[Dataset]:
    """The project's data sets, newest first, without their files."""
    with db.read() as session:
        rows = store.page(session, project, after=after, limit=limit + 1)
        sizes = store.sizes(session, [row.id for row in rows])
    return page_of(
        rows,
        limit,
        view=lambda row: dataset_resource(row, size=sizes.get(row.id, (0, 0))),
        cursor=place_of,
    )


@router.get("/{dataset_id}")
def get_dataset(dataset_id: DatasetId, project: Project, db: Db) -> Dataset:
    """The data set with its files."""
    with db.read() as session:
        row = store.get(session, dataset_id, project)
        return _with_files(row, store.files(session, dataset_id))


def _with_files(row: DatasetRow, files: list[DatasetFile]) -> Dataset:
    size = len(files), sum(file.size for file in files)
    return dataset_resource(row, size=size, files=files)


@router.get("/{dataset_id}/files/{name}")
def get_file_parts(dataset_id: DatasetId, name: FileName, project: Project, db: Db) -> DatasetFile:
    """The parts of a file that have arrived, so that an interrupted upload can resume."""
    with db.read() as session:
        store.get(session, dataset_id, project)
        return _file(store.files(session, dataset_id, name=name), name)


def _file(found: list[DatasetFile], name: str) -> DatasetFile:
    if not found:
        raise NotFound.by_id("file", name, of="this data set", listed="the data set")
    return found[0]


@router.put("/{dataset_id}/files/{name}", responses=may_refuse(409), openapi_extra=BYTES_BODY)
async def put_part(
    dataset_id: DatasetId,
    name: FileName,
    offset: Offset,
    project: Project,
    db: Db,
    blobs: DatasetBlobs,
    settings: AppSettings,
    request: Request,
    x_content_sha256: Sha256,
) -> FileSummary:
    """Store a part of at most 64 MiB; the same one again changes nothing."""
    await anyio.to_thread.run_sync(_require_open, db, dataset_id, project)
    part = await parts.receive(
        request,
        offset=offset,
        sha256=x_content_sha256,
        blobs=blobs,
        uploads=settings.uploads_dir,
        project=project,
        dataset_id=dataset_id,
    )

    def work() -> FileSummary:
        with db.write() as session:
            row = actions.require_open(session, dataset_id, project)
            return file_summary(
                actions.list_part(
                    session,
                    row,
                    file_name=name,
                    part=part,
                    max_bytes=settings.max_dataset_bytes,
                )
            )

    try:
        return await anyio.to_thread.run_sync(work)
    except NotFound:  # deleted meanwhile, and nothing else deletes what has arrived since
        folder = dataset_folder(project, dataset_id)
        await anyio.to_thread.run_sync(blobs.delete, folder)
        raise


def _require_open(db: Database, dataset_id: str, project: str) -> None:
    """Refuse early, before the body is read, most of what would be refused."""
    with db.write() as session:
        actions.require_open(session, dataset_id, project)


@router.post("/{dataset_id}/seal", responses=may_refuse(409))
def seal_dataset(dataset_id: DatasetId, project: Project, db: Db) -> Dataset:
    """Close it for files and open it for jobs. Again: no change."""
    with db.write() as session:
        row = store.get(session, dataset_id, project, lock=True)
        actions.seal(session, row)
        return _with_files(row, store.files(session, dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=may_refuse(409))
def delete_dataset(dataset_id: DatasetId, project: Project, db: Db, blobs: DatasetBlobs) -> None:
    """Delete it with its files; 409 while a job that has not ended uses it."""
    with db.write() as session:
        actions.delete(session, store.get(session, dataset_id, project, lock=True))
    blobs.delete(dataset_folder(project, dataset_id))


# ---- ranks --------------------------------------------------------------------------------------


@rank_router.get("/{dataset_id}")
def get_content(dataset_id: DatasetId, token: AttemptToken, db: Db) -> DatasetContent:
    """Format, files and parts of the data set of the attempt's own job."""
    row, files = _of_attempt(db, token, dataset_id)
    return DatasetContent(dataset_id=row.id, format=row.format, files=tuple(files))


@rank_router.get("/{dataset_id}/files/{name}", response_class=Download)
def get_part(
    dataset_id: DatasetId,
    name: FileName,
    offset: Offset,
    token: AttemptToken,
    db: Db,
    blobs: DatasetBlobs,
) -> Download:
    """The bytes of one part of it."""
    row, files = _of_attempt(db, token, dataset_id, name=name)
    part = next((part for part in _file(files, name).parts if part.offset == offset), None)
    if part is None:
        raise NotFound(
            f"expected the offset of a part of {name!r}, saw {offset}; its parts have them"
        )
    return _part_response(blobs, row, part)


def _part_response(blobs: BlobStore, row: DatasetRow, part: DatasetPart) -> Download:
    key = part_key(row.project, row.id, sha256=part.sha256, size=part.size)
    chunks = blobs.read(key, 0, part.size)
    return Download(chunks, size=part.size, close=chunks.close)


def _of_attempt(
    db: Database, token: str, dataset_id: str, *, name: str | None = None
) -> tuple[DatasetRow, list[DatasetFile]]:
    with db.read() as session:
        attempt = open_attempt(session, token)
        row = store.get(session, dataset_id, attempt.project)
        is_of_job = store.is_of_job(session, dataset_id, job_id=attempt.job_id)
        if not is_of_job or row.state != DatasetState.SEALED:
            raise NotFound.by_id("data set", dataset_id, of="this job", listed="its specification")
        return row, store.files(session, dataset_id, name=name)
