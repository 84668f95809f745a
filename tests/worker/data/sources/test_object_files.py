"""Objects of a store that speaks S3: what the operator lists, whole, in order, and nothing else."""

import logging
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import obstore
import pytest
from data_cases import Node, csv_text
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from roadless.service.contract.states import Reason
from roadless.worker.data.sources import object_files
from roadless.worker.data.sources.source_file import SourceAway
from roadless.worker.errors import JobFailed

REGION = "us-east-1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A real server of the protocol, found as an operator would name it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", REGION)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str) -> str:
    name = f"data-{uuid.uuid4().hex}"
    # The store is a bucket's inside; a plain PUT of its name makes the bucket.
    with httpx.Client() as http:
        assert http.put(f"{endpoint}/{name}").status_code == 200
    return name


@pytest.fixture
def node(tmp_path: Path, bucket: str) -> Node:
    return Node.at(tmp_path, urls=(f"s3://{bucket}/open",))


def put(bucket: str, key: str, content: bytes) -> str:
    obstore.put(S3Store(bucket, client_options={"allow_http": True}), key, content)
    return f"s3://{bucket}/{key}"


def rows(first: int, last: int) -> bytes:
    numbers = range(first, last)
    return csv_text({"x": list(map(float, numbers)), "y": [i % 2 for i in numbers]}).encode()


def load(node: Node, path: str):
    return node.build({"format": "csv", "path": path, "target": "y", "eval": {"fraction": 0.1}})


def fault(node: Node, path: str, reason: Reason) -> str:
    with pytest.raises(JobFailed) as caught:
        load(node, path)
    assert caught.value.reason is reason
    return str(caught.value)


def test_an_object_is_read(node, bucket):
    data = load(node, put(bucket, "open/a.csv", rows(0, 50)))
    assert (data.num_train, data.num_eval) == (45, 5)


def test_objects_of_a_pattern_come_by_name(node, bucket):
    for name in ("2.csv", "1.csv", "10.csv", "deep/3.csv", "4.txt"):
        put(bucket, f"open/{name}", rows(0, 3))
    for pattern, expected in (
        ("open/*.csv", ["1.csv", "10.csv", "2.csv"]),
        ("open/**/*.csv", ["1.csv", "10.csv", "2.csv", "deep/3.csv"]),
        ("open/?.csv", ["1.csv", "2.csv"]),
    ):
        found = object_files.find(f"s3://{bucket}/{pattern}", sources=node.sources)
        assert [file.name.partition("/open/")[2] for file in found] == expected


def test_large_objects_come_whole_in_blocks(node, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(object_files, "_BLOCK_BYTES", 2**20)
    content = bytes(range(256)) * 4096 * 5
    (file,) = object_files.find(put(bucket, "open/large", content), sources=node.sources)
    assert file.size == len(content)
    assert file.fetch(tmp_path, print).read_bytes() == content


def test_what_the_operator_does_not_list_is_forbidden_and_not_looked_at(node, bucket):
    put(bucket, "secret/a.csv", rows(0, 9))
    for key in ("secret/a.csv", "secret/*", "absent", "*", "openly/a.csv"):
        said = fault(node, f"s3://{bucket}/{key}", Reason.DATA_FORBIDDEN)
        assert "ROADLESS_DATA_URLS" in said
        assert f"s3://{bucket}/open" in said


@pytest.mark.parametrize("key", ["open/../secret/a.csv", "open/**/../../secret/*", "open//a.csv"])
def test_a_key_that_no_store_can_have_is_final(node, bucket, key):
    put(bucket, "secret/a.csv", rows(0, 9))
    assert "a key whose parts are names" in fault(node, f"s3://{bucket}/{key}", Reason.DATA_INVALID)
    with pytest.raises(JobFailed) as caught:  # whoever asks past the first check
        object_files.find(f"s3://{bucket}/{key}", sources=node.sources)
    assert caught.value.reason in (
        Reason.DATA_FORBIDDEN,
        Reason.DATA_INVALID,
        Reason.DATA_NOT_FOUND,
    )


def test_objects_that_are_not_there_are_data_not_found(node, bucket):
    for key in ("open/absent.csv", "open/*.csv"):
        assert key in fault(node, f"s3://{bucket}/{key}", Reason.DATA_NOT_FOUND)


def test_objects_with_brackets_in_their_keys_are_found_by_their_keys(node, bucket):
    for key in ("open/data[v2].csv", "open/run[1]/a.csv", "open/part[12].csv", "open/part1.csv"):
        put(bucket, key, rows(0, 9))
    for key in ("open/data[v2].csv", "open/run[1]/*.csv"):
        assert load(node, f"s3://{bucket}/{key}").num_train == 8
    said = fault(node, f"s3://{bucket}/open/part[12].csv", Reason.DATA_INVALID)
    assert "to have one meaning, saw open/part1.csv, which it matches" in said


def test_an_object_that_changes_is_never_read_half_old_half_new(node, bucket, tmp_path):
    url = put(bucket, "open/a.csv", rows(0, 9))
    (file,) = object_files.find(url, sources=node.sources)
    put(bucket, "open/a.csv", rows(9, 18))
    with pytest.raises(JobFailed, match="to stay unchanged") as caught:
        file.fetch(tmp_path, print)
    assert caught.value.reason is Reason.DATA_UNREADABLE
    assert load(node, url).description != load(node, put(bucket, "open/a.csv", rows(0, 9)))


def test_an_object_larger_than_the_cache_is_not_fetched(node, bucket):
    url = put(bucket, "open/a.csv", rows(0, 900))
    small = Node(node.root, replace(node.sources, cache_bytes=100))
    assert "node's cache" in fault(small, url, Reason.DATA_INVALID)


def test_too_many_objects_are_refused(node, bucket, monkeypatch):
    monkeypatch.setattr(object_files, "MAX_FILES", 2)
    for number in range(3):
        put(bucket, f"open/{number}.csv", rows(0, 3))
    assert "at most 2 objects" in fault(node, f"s3://{bucket}/open/*", Reason.DATA_INVALID)


def test_a_pattern_that_looks_at_too_many_objects_is_refused(node, bucket, monkeypatch):
    monkeypatch.setattr(object_files, "MAX_LOOKED_AT", 2)
    for number in range(3):
        put(bucket, f"open/{number}.csv", rows(0, 3))
    assert "names to look at" in fault(node, f"s3://{bucket}/open/0*", Reason.DATA_INVALID)


def test_a_store_that_is_away_is_no_fault_of_the_job(node, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(object_files._RETRIES, "max_retries", 0)
    with pytest.raises(SourceAway, match="open/a"):
        load(node, f"s3://{bucket}/open/a.csv")
