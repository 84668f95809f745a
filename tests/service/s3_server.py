"""A real server of the S3 protocol on loopback, and buckets in it."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from roadless.service.storage.s3_bucket import Bucket

REGION = "us-east-1"
ACCESS_KEY = "an-access-key"
SECRET_KEY = "a-secret-that-is-never-logged"


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL, while the environment has credentials for it and no others."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        try:
            yield f"http://{host}:{port}"
        finally:
            server.stop()


def client(bucket: Bucket) -> object:
    """A client of the test's own, to look behind the store and to make troubles."""
    return boto3.client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name=REGION,
        config=Config(retries={"total_max_attempts": 1}),
    )


def new_bucket(endpoint: str, *, prefix: str = "a/prefix") -> Bucket:
    """An empty bucket that nobody else has."""
    bucket = Bucket(f"test-{uuid.uuid4().hex}", prefix, endpoint, REGION, is_path_style=True)
    client(bucket).create_bucket(Bucket=bucket.name)  # type: ignore[attr-defined]
    return bucket


def through(bucket: Bucket, url: str) -> Bucket:
    """The same bucket by way of a proxy."""
    return replace(bucket, endpoint=url)
