"""The blob store of wheels as a route asks for it."""

from typing import Annotated

from fastapi import Depends, Request

from service.checkpoints.blobs import BlobStore


async def _wheel_blobs(request: Request) -> BlobStore:
    blobs: BlobStore = request.app.state.wheel_blobs
    return blobs


WheelBlobs = Annotated[BlobStore, Depends(_wheel_blobs)]
