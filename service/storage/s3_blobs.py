"""Blobs as objects in a bucket of any S3-compatible store.

The store makes an object visible whole or not at all, so nothing is renamed here. Large files go up
in parts, read from disk as they are sent; no listing of objects shows what a killed service leaves
of such an upload, and ``drop_unfinished`` removes it.
"""

import contextlib
import itertools
import logging
from collections.abc import Generator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig

from roadless.service.errors import BlobMissing, Unavailable
from roadless.service.storage.blobs import CHUNK_BYTES, Content
from roadless.service.storage.s3_bucket import Bucket, Clients, require_header, translated

log = logging.getLogger(__name__)

#: A file up to this size is one request. The SDK takes larger parts where 10,000 do not suffice.
PART_BYTES = 16 << 20
#: Parts of one file in flight.
PARTS_AT_ONCE = 4
#: How often in a row a download resumes after its connection broke without a byte gained.
RESUMPTIONS = 3
#: Objects in one page of a listing, and in one request that deletes: the most that S3 takes.
PAGE_OBJECTS = 1000


class S3Blobs:
    """Blobs as objects of one bucket, below one prefix that nobody else uses."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        clients = Clients.of(bucket)
        self._questions, self._content = clients.questions, clients.content

    def put(self, key: str, source: Path) -> None:
        """Upload the file, in parts where it is large; a failed upload is aborted."""
        with translated():
            self._content.upload_file(
                str(source), self._bucket.name, self._bucket.key(key), Config=_transfer()
            )
        source.unlink()

    def size(self, key: str) -> int | None:
        """Bytes of the object."""
        try:
            with translated():
                head = self._questions.head_object(
                    Bucket=self._bucket.name, Key=self._bucket.key(key)
                )
        except BlobMissing:
            return None
        require_header(head, has="ContentLength")
        return int(head["ContentLength"])

    def read(self, key: str, start: int, stop: int) -> Content:
        """Check now that it exists; then read lazily, and resume where a connection breaks."""
        if self.size(key) is None:
            raise BlobMissing
        return self._chunks(key, start, stop)

    def delete(self, prefix: str) -> None:
        """Delete the objects, a page at a time."""
        keys = (one["Key"] for one in self._objects(f"{prefix}/"))
        while page := list(itertools.islice(keys, PAGE_OBJECTS)):
            with translated():
                answer = self._questions.delete_objects(
                    Bucket=self._bucket.name,
                    Delete={"Objects": [{"Key": key} for key in page], "Quiet": True},
                )
            if refused := answer.get("Errors"):
                log.warning("%s does not delete: %s", self._bucket, refused[0])
                raise Unavailable("the blob store does not delete; try again")

    def folders(self, *, before: datetime) -> Iterator[str]:
        """Objects are listed in the order of their keys, so those of a folder come in a row."""
        blobs = (one for one in self._objects("") if self._is_blob(one["Key"]))
        for folder, objects in itertools.groupby(blobs, lambda one: self._folder(one["Key"])):
            if max(one["LastModified"] for one in objects) < before:
                yield folder

    def drop_unfinished(self, *, before: datetime) -> int:
        """Abort multipart uploads that nobody completed."""
        num_dropped = 0
        for upload in self._pages("list_multipart_uploads", "Uploads", ""):
            if upload["Initiated"] < before and self._is_blob(upload["Key"]):
                self._abort(upload)
                num_dropped += 1
        return num_dropped

    def _abort(self, upload: Any) -> None:
        what = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
        with contextlib.suppress(self._questions.exceptions.NoSuchUpload), translated():
            self._questions.abort_multipart_upload(Bucket=self._bucket.name, **what)

    def _chunks(self, key: str, start: int, stop: int) -> Generator[bytes]:
        num_in_vain = 0
        while start < stop:
            begun_at = start
            with contextlib.suppress(Unavailable):
                for chunk in self._stream(key, start, stop):
                    start += len(chunk)
                    yield chunk
            num_in_vain = 0 if start > begun_at else num_in_vain + 1
            if num_in_vain > RESUMPTIONS:
                raise Unavailable(f"the blob store sent nothing after byte {start}; try again")

    def _stream(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        with translated():
            answer = self._content.get_object(
                Bucket=self._bucket.name,
                Key=self._bucket.key(key),
                Range=f"bytes={start}-{stop - 1}",
            )
            require_header(answer, has="ContentRange")
            with contextlib.closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK_BYTES)

    def _objects(self, prefix: str) -> Iterator[Any]:
        return self._pages("list_objects_v2", "Contents", prefix)

    def _pages(self, operation: str, field: str, prefix: str) -> Iterator[Any]:
        """The entries of a listing below ``prefix``, one page in memory at a time."""
        pages = self._questions.get_paginator(operation).paginate(
            Bucket=self._bucket.name,
            Prefix=self._bucket.key(prefix),
            PaginationConfig={"PageSize": PAGE_OBJECTS},
        )
        with translated():
            for page in pages:
                yield from page.get(field, [])

    def _is_blob(self, key: str) -> bool:
        """Whether the key has the shape of ours (see ``keys.py``)."""
        return self._bucket.name_of(key).count("/") == 4

    def _folder(self, key: str) -> str:
        return self._bucket.name_of(key).rsplit("/", 2)[0]


def _transfer() -> TransferConfig:
    return TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=PARTS_AT_ONCE,
    )
