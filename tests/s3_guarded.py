"""A server of the S3 protocol that checks who asks: without the right signature it refuses."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import boto3
import httpx
from botocore.config import Config
from moto.server import ThreadedMotoServer

REGION = "us-east-1"
_POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
}


@dataclass(frozen=True)
class Guarded:
    """Where it is, and the one pair of keys that it takes."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def put(self, bucket: str, key: str, content: bytes) -> str:
        """Store an object, in a bucket that is made if need be; return its URL."""
        s3 = self._client("s3")
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key=key, Body=content)
        return f"s3://{bucket}/{key}"

    def _client(self, kind: str) -> Any:
        return _client(kind, self.endpoint, self.access_key, self.secret_key)


@contextmanager
def guarded_s3() -> Iterator[Guarded]:
    """The server, while the block lasts."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        access_key, secret_key = _new_user(endpoint)
        _check_from_now_on(endpoint, num_unchecked="0")
        yield Guarded(endpoint, access_key, secret_key)
    finally:
        _check_from_now_on(endpoint, num_unchecked="inf")
        server.stop()


def _new_user(endpoint: str) -> tuple[str, str]:
    iam = _client("iam", endpoint, "anybody", "anything")
    name = f"user-{os.urandom(4).hex()}"
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=json.dumps(_POLICY))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def _check_from_now_on(endpoint: str, *, num_unchecked: str) -> None:
    httpx.post(f"{endpoint}/moto-api/reset-auth", content=num_unchecked).raise_for_status()


def _client(kind: str, endpoint: str, access_key: str, secret_key: str) -> Any:
    with mock.patch.dict(os.environ, {"AWS_EC2_METADATA_DISABLED": "true"}):
        return boto3.client(
            kind,
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )
