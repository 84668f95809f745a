"""A part on its way in: from the request to the disk, hashed, and into the blob store."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread
from fastapi import Request

from service.checkpoints.blobs import BlobStore
from service.contract.datasets import MAX_PART_BYTES, DatasetPart
from service.datasets.keys import part_key
from service.errors import Invalid, TooLarge


async def receive(
    request: Request,
    *,
    offset: int,
    sha256: str,
    blobs: BlobStore,
    uploads: Path,
    project: str,
    dataset_id: str,
) -> DatasetPart:
    """Store the body of a request as a part's content.

    ``uploads``: a folder for files on their way in. Raises TooLarge beyond 64 MiB, and Invalid for
    an empty part or another hash than ``sha256``.
    """
    uploads.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=uploads)
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            size, seen = await _write(request, file)
        if seen != sha256:
            raise Invalid(f"expected content with SHA-256 {sha256}, saw {seen}")
        if size == 0:
            raise Invalid("expected a part with at least one byte, saw none")
        key = part_key(project, dataset_id, sha256=sha256, size=size)
        await anyio.to_thread.run_sync(blobs.put, key, path)
    finally:
        path.unlink(missing_ok=True)
    return DatasetPart(offset=offset, size=size, sha256=sha256)


async def _write(request: Request, file: BinaryIO) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_PART_BYTES:
            raise TooLarge(f"expected a part of at most {MAX_PART_BYTES} bytes, saw more")
        digest.update(chunk)
        await anyio.to_thread.run_sync(file.write, chunk)
    return size, digest.hexdigest()
