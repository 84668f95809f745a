"""One contract for every blob store: a folder, a bucket of a real S3 server, and the fake."""

import hashlib
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import new_bucket, s3_server

from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.errors import BlobMissing
from roadless.service.storage.blobs import MemoryBlobs
from roadless.service.storage.local_blobs import LocalBlobs
from roadless.service.storage.s3_blobs import S3Blobs

CONTENT = b"0123456789"
#: The clock of an S3 server counts in seconds.
AGES = timedelta(seconds=5)


@pytest.fixture(scope="module")
def s3():
    with s3_server() as url:
        yield url


@pytest.fixture(params=["local", "memory", "s3", "s3 without prefix"])
def blobs(request, tmp_path):
    if request.param == "local":
        return LocalBlobs(tmp_path / "blobs")
    if request.param == "memory":
        return MemoryBlobs()
    prefix = "" if request.param == "s3 without prefix" else "a/prefix"
    return S3Blobs(new_bucket(request.getfixturevalue("s3"), prefix=prefix))


@pytest.fixture
def put(blobs, tmp_path):
    def put(key, content=CONTENT):
        source = tmp_path / "source"
        source.write_bytes(content)
        blobs.put(key, source)
        return source

    return put


def key_in(folder, name="name"):
    return f"{folder}/{hashlib.sha256(name.encode()).hexdigest()}/{name}"


@pytest.fixture
def folder():
    return f"default/{new_id('job')}/{new_id('ckpt')}"


def read(blobs, key, start=0, stop=10):
    return b"".join(blobs.read(key, start, stop))


def test_what_is_put_is_read_back(blobs, put, folder):
    put(key_in(folder))
    assert read(blobs, key_in(folder)) == CONTENT
    assert blobs.size(key_in(folder)) == len(CONTENT)


def test_put_moves_the_file(put, folder):
    assert not put(key_in(folder)).exists()


def test_a_put_can_be_repeated(blobs, put, folder):
    put(key_in(folder))
    put(key_in(folder))
    assert read(blobs, key_in(folder)) == CONTENT


def test_an_empty_file_is_a_blob_too(blobs, put, folder):
    put(key_in(folder), b"")
    assert (blobs.size(key_in(folder)), read(blobs, key_in(folder), 0, 0)) == (0, b"")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.tuples(st.integers(0, 10), st.integers(0, 10)).map(sorted))
def test_a_part_is_a_slice(blobs, put, span):
    key = "p/job/ckpt/hash/name"
    if blobs.size(key) is None:
        put(key)
    assert read(blobs, key, *span) == CONTENT[slice(*span)]


def test_an_absent_blob_has_no_size_and_is_refused_before_the_first_byte(blobs, folder):
    assert blobs.size(key_in(folder)) is None
    with pytest.raises(BlobMissing):
        blobs.read(key_in(folder), 0, 1)


def test_delete_removes_everything_below_and_nothing_beside(blobs, put, folder):
    put(key_in(folder, "a"))
    put(key_in(folder, "b"))
    put(key_in(f"{folder}x"))
    blobs.delete(folder)
    blobs.delete(folder)
    assert blobs.size(key_in(folder, "a")) is None
    assert blobs.size(key_in(folder, "b")) is None
    assert blobs.size(key_in(f"{folder}x")) == len(CONTENT)


def test_folders_are_told_by_the_age_of_their_newest_file(blobs, put):
    first, second = sorted(f"default/{new_id('job')}/{new_id('ckpt')}" for _ in range(2))
    for key in (key_in(first), key_in(second, "a"), key_in(second, "b")):
        put(key)
    now = utc_now()
    assert sorted(blobs.folders(before=now + AGES)) == [first, second]
    assert list(blobs.folders(before=now - AGES)) == []
    blobs.delete(first)
    assert list(blobs.folders(before=now + AGES)) == [second]


def test_where_nothing_is_unfinished_nothing_is_dropped(blobs, put, folder):
    put(key_in(folder))
    assert blobs.drop_unfinished(before=utc_now() + AGES) == 0
    assert blobs.size(key_in(folder)) == len(CONTENT)
