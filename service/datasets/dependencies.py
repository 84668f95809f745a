"""The blob store of data sets as a route asks for it."""

from typing import Annotated

from fastapi import Depends, Request

from service.checkpoints.blobs import BlobStore


async def _dataset_blobs(request: Request) -> BlobStore:
    blobs: BlobStore = request.app.state.dataset_blobs
    return blobs


DatasetBlobs = Annotated[BlobStore, Depends(_dataset_blobs)]
