"""Receives a part: from the request to the disk, hashed, and into the blob store."""

import secrets
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi import Request

from roadless.service.contract.uploads.datasets import MAX_PART_BYTES, DatasetPart
from roadless.service.datasets.keys import part_key
from roadless.service.errors import Invalid
from roadless.service.storage.blobs import BlobStore
from roadless.service.storage.incoming import Incoming
from roadless.service.storage.intake import append


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

    ``uploads``: a folder for files in progress. Raises TooLarge beyond 64 MiB, Invalid for an empty
    part or a hash other than ``sha256``, and Unavailable when nothing arrives for 30 s.
    """
    with Incoming(uploads / secrets.token_hex(16)) as incoming:
        try:
            await append(incoming, request.stream(), max_bytes=MAX_PART_BYTES, what="part")
            size, seen = incoming.num_bytes, await anyio.to_thread.run_sync(incoming.sha256)
            if seen != sha256:
                raise Invalid(f"expected content with SHA-256 {sha256}, saw {seen}")
            if size == 0:
                raise Invalid("expected a part with at least one byte, saw none")
            key = part_key(project, dataset_id, sha256=sha256, size=size)
            await anyio.to_thread.run_sync(blobs.put, key, incoming.path)
        finally:
            incoming.remove()
    return DatasetPart(offset=offset, size=size, sha256=sha256)
