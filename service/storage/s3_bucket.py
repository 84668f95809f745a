"""A bucket of an S3-compatible store: where it is, how to reach it, and what its errors mean here.

Credentials are found by the SDK, in the environment or from the machine's role; they are never read
or logged here.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from roadless.service.errors import BlobMissing, DiskFull, Unavailable

log = logging.getLogger(__name__)

#: Tries of one request before the store counts as away; the SDK waits 1, then up to 2 s in between.
TRIES = 3
CONNECT_SECONDS = 3
#: Silence after which a try is given up: for questions, and for content in transit.
QUESTION_SECONDS = 5
CONTENT_SECONDS = 20
CONNECTIONS = 64

_ABSENT = frozenset({"404", "NoSuchKey"})
#: What compatible stores answer when their disks or a quota are full (MinIO, Ceph, OpenStack).
_FULL = frozenset(
    {
        *{"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"},
        *{"QuotaExceeded", "InsufficientStorage", "InsufficientCapacity"},
    }
)
_INSUFFICIENT_STORAGE = 507
#: Is beside the projects' folders, so it is none of them.
_PROBE = "probe"


class BucketUnusable(Exception):
    """The bucket does not exist, or refuses us: for the operator, when the service starts."""


@dataclass(frozen=True)
class Bucket:
    """Where blobs are.

    ``prefix``: what all keys begin with, ``""`` for none. ``endpoint``: URL of the store, None for
    Amazon's. ``region``: None to let the SDK find it. ``is_path_style``: the bucket is named in the
    path of URLs, not in their host name.
    """

    name: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    is_path_style: bool = False

    @classmethod
    def at(cls, url: str, *, endpoint: str | None, region: str | None, is_path_style: bool) -> Self:
        """The bucket of ``s3://NAME`` or ``s3://NAME/PREFIX``."""
        name, _, prefix = url.removeprefix("s3://").partition("/")
        return cls(name, prefix.rstrip("/"), endpoint, region, is_path_style)

    def key(self, name: str) -> str:
        """The key of an object, or what those of a folder begin with."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def name_of(self, key: str) -> str:
        """The name that ``key`` was made from."""
        return key.removeprefix(self.key(""))

    def __str__(self) -> str:
        return f"bucket {self.name!r} at {self.endpoint or 'Amazon S3'}"


@dataclass(frozen=True)
class Clients:
    """Two clients of a bucket. ``questions``: requests with short answers; ``content``: bytes."""

    questions: Any
    content: Any

    @classmethod
    def of(cls, bucket: Bucket) -> Self:
        """Connect at the first request; raises nothing about a store that is away."""
        session = boto3.session.Session()
        return cls(
            questions=_client(session, bucket, read_seconds=QUESTION_SECONDS),
            content=_client(session, bucket, read_seconds=CONTENT_SECONDS),
        )


def _client(session: boto3.session.Session, bucket: Bucket, *, read_seconds: int) -> Any:
    return session.client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name=bucket.region,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=read_seconds,
            retries={"mode": "standard", "total_max_attempts": TRIES},
            max_pool_connections=CONNECTIONS,
            # Not every compatible store understands checksums beyond those required. The signature
            # covers what is sent, the hash in the manifest what is read.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if bucket.is_path_style else "auto"},
        ),
    )


def require_usable(bucket: Bucket) -> None:
    """Store and delete something; raises BucketUnusable if that can never succeed.

    A store that is away for now is only logged: training continues without it for a while.
    """
    client = Clients.of(bucket).questions
    probe = {"Bucket": bucket.name, "Key": bucket.key(_PROBE)}
    try:
        client.head_bucket(Bucket=bucket.name)
        client.put_object(**probe, Body=b"")
        client.delete_object(**probe)
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise BucketUnusable(
            f"{bucket}: expected credentials, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            f"from the machine's role, saw: {error}"
        ) from error
    except ClientError as error:
        _judge(bucket, error)
    except BotoCoreError as error:
        _tell_away(bucket, error)


def _judge(bucket: Bucket, error: ClientError) -> None:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500:
        _tell_away(bucket, error)
    elif status == 404:
        raise BucketUnusable(f"{bucket}: expected the bucket to exist, saw none") from error
    elif status == 403:
        expected = "permission to list, read, write and delete"
        raise BucketUnusable(f"{bucket}: expected {expected}, saw: {error}") from error
    else:
        raise BucketUnusable(f"{bucket}: expected it to answer, saw: {error}") from error


def _tell_away(bucket: Bucket, error: Exception) -> None:
    log.warning("%s does not answer; checkpoints wait: %s", bucket, error)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what the SDK raises into our errors, keeping the cause."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _ABSENT:
            raise BlobMissing from error
        if _is_full(error):
            log.error("the blob store is full: %s", error)
            raise DiskFull("this file in the blob store") from error
        raise _away(error) from error
    except (BotoCoreError, Boto3Error) as error:
        raise _away(error) from error


def _is_full(error: ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = error.response.get("Error", {}).get("Code")
    return status == _INSUFFICIENT_STORAGE or code in _FULL


def _away(error: Exception) -> Unavailable:
    log.warning("the blob store failed: %s", error)
    return Unavailable("the blob store does not answer; try again")


def require_header(answer: Any, *, has: str) -> None:
    """The SDK takes an answer that was cut off within its headers for a complete one."""
    if has not in answer:
        raise Unavailable(f"the blob store answers without {has}; try again")
