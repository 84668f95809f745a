"""What only a bucket has: parts, pages, leave, and a network that breaks."""

import hashlib
import logging
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import ACCESS_KEY, SECRET_KEY, client, new_bucket, s3_server, through
from tearing import torn

from roadless.service import main as service_main
from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.errors import BlobMissing, Unavailable
from roadless.service.storage import s3_blobs, s3_bucket
from roadless.service.storage.s3_blobs import S3Blobs
from roadless.service.storage.s3_bucket import Bucket, BucketUnusable, require_usable

ROOT = Path(__file__).parents[3]
PART = 5 << 20  # the least that S3 takes
CONTENT = random.Random(0).randbytes(2 * PART + 12_345)
FOLDER = f"default/{new_id('job')}/{new_id('ckpt')}"
KEY = f"{FOLDER}/{hashlib.sha256(CONTENT).hexdigest()}/model.safetensors"
AGES = timedelta(seconds=5)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint):
    return new_bucket(endpoint)


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    """Small parts; one try, since a test does not want to wait for what it has broken."""
    monkeypatch.setattr(s3_blobs, "PART_BYTES", PART)
    monkeypatch.setattr(s3_bucket, "TRIES", 1)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def behind(bucket):
    """What the bucket really has, seen past the store."""
    api = client(bucket)
    return SimpleNamespace(
        api=api,
        objects=lambda: api.list_objects_v2(Bucket=bucket.name).get("Contents", []),
        unfinished=lambda: api.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []),
        begin=lambda key: api.create_multipart_upload(Bucket=bucket.name, Key=key),
        put=lambda key, content: api.put_object(Bucket=bucket.name, Key=key, Body=content),
    )


# ---- parts -------------------------------------------------------------------------------------


def test_a_large_file_goes_up_in_parts_and_comes_back(bucket, source, behind):
    blobs = S3Blobs(bucket)
    blobs.put(KEY, source)
    (stored,) = behind.objects()
    assert (stored["Key"], stored["ETag"][-3:]) == (f"a/prefix/{KEY}", '-3"')  # of three parts
    assert b"".join(blobs.read(KEY, 0, len(CONTENT))) == CONTENT
    assert b"".join(blobs.read(KEY, PART - 3, PART + 3)) == CONTENT[PART - 3 : PART + 3]


@pytest.mark.parametrize("request_at", range(5), ids=["begin", "1st", "2nd", "3rd", "complete"])
def test_an_upload_that_breaks_leaves_no_part_and_keeps_the_file(
    bucket, source, behind, monkeypatch, request_at
):
    monkeypatch.setattr(s3_blobs, "PARTS_AT_ONCE", 1)  # a connection each, one after the other
    with torn(bucket.endpoint) as proxy:
        blobs = S3Blobs(through(bucket, proxy.url))
        proxy.tear([1 << 60] * request_at + [100])
        with pytest.raises(Unavailable):
            blobs.put(KEY, source)
        assert proxy.num_torn == 1
        assert (behind.objects(), behind.unfinished(), blobs.size(KEY)) == ([], [], None)
        assert source.read_bytes() == CONTENT
        blobs.put(KEY, source)
        assert blobs.size(KEY) == len(CONTENT)


def test_what_a_killed_service_left_is_dropped_once_it_is_old(bucket, behind):
    blobs = S3Blobs(bucket)
    behind.begin(f"a/prefix/{KEY}")
    behind.begin("a/prefix/of somebody else")
    behind.begin(f"other/{KEY}")
    since = behind.unfinished()[0]["Initiated"]  # this server says the same of every upload
    assert blobs.drop_unfinished(before=since) == 0
    assert blobs.drop_unfinished(before=since + AGES) == 1
    left = {upload["Key"] for upload in behind.unfinished()}
    assert left == {"a/prefix/of somebody else", f"other/{KEY}"}


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_a_long_listing_comes_in_pages(bucket, behind, monkeypatch, page):
    monkeypatch.setattr(s3_blobs, "PAGE_OBJECTS", page)
    blobs = S3Blobs(bucket)
    folders = sorted(f"default/{new_id('job')}/{new_id('ckpt')}" for _ in range(3))
    for folder in folders:
        for name in "abc":
            behind.put(f"a/prefix/{folder}/{'0' * 64}/{name}", b"x")
    behind.put("a/prefix/of somebody else", b"x")
    assert list(blobs.folders(before=utc_now() + AGES)) == folders
    blobs.delete(folders[1])
    assert list(blobs.folders(before=utc_now() + AGES)) == [folders[0], folders[2]]
    assert len(behind.objects()) == 7


# ---- a network that breaks ---------------------------------------------------------------------


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None
)
@given(st.lists(st.integers(2000, 300_000), max_size=4))
def test_a_download_goes_on_wherever_its_connection_breaks(bucket, behind, tears):
    content = CONTENT[: 3 << 19]
    behind.put(f"a/prefix/{KEY}", content)
    with torn(bucket.endpoint, is_download=True) as proxy:
        blobs = S3Blobs(through(bucket, proxy.url))
        chunks = blobs.read(KEY, 10, len(content) - 10)
        proxy.tear(tears)
        assert b"".join(chunks) == content[10:-10]
        assert proxy.num_torn == len(tears)


def test_a_download_without_any_progress_ends(bucket, behind):
    behind.put(f"a/prefix/{KEY}", CONTENT)
    with torn(bucket.endpoint, is_download=True) as proxy:
        blobs = S3Blobs(through(bucket, proxy.url))
        chunks = blobs.read(KEY, 0, len(CONTENT))
        proxy.tear([100] * 50)
        with pytest.raises(Unavailable):
            list(chunks)
        assert proxy.num_torn == s3_blobs.RESUMPTIONS + 1


def test_an_object_that_is_shorter_than_its_manifest_says_is_no_download(bucket, behind):
    behind.put(f"a/prefix/{KEY}", CONTENT[:1000])
    seen = []
    with pytest.raises(Unavailable):
        seen.extend(S3Blobs(bucket).read(KEY, 0, len(CONTENT)))
    assert b"".join(seen) == CONTENT[:1000]


def test_an_object_deleted_in_the_midst_of_a_download_ends_it(bucket, behind):
    behind.put(f"a/prefix/{KEY}", CONTENT)
    blobs = S3Blobs(bucket)
    chunks = blobs.read(KEY, 0, len(CONTENT))
    blobs.delete(FOLDER)
    with pytest.raises(BlobMissing):
        next(chunks)


@pytest.mark.parametrize(
    "ask",
    [
        lambda blobs, source: blobs.put(KEY, source),
        lambda blobs, source: blobs.size(KEY),
        lambda blobs, source: blobs.read(KEY, 0, 1),
        lambda blobs, source: blobs.delete(FOLDER),
        lambda blobs, source: list(blobs.folders(before=utc_now())),
        lambda blobs, source: blobs.drop_unfinished(before=utc_now()),
    ],
    ids=["put", "size", "read", "delete", "folders", "drop_unfinished"],
)
def test_a_store_that_is_away_is_unavailable(bucket, source, ask):
    with pytest.raises(Unavailable):
        ask(S3Blobs(through(bucket, NOWHERE)), source)
    assert source.exists()


def test_a_request_that_fails_once_is_tried_again(bucket, behind, monkeypatch):
    monkeypatch.setattr(s3_bucket, "TRIES", 2)
    behind.put(f"a/prefix/{KEY}", b"x")
    with torn(bucket.endpoint, is_download=True) as proxy:
        proxy.tear([10])
        assert S3Blobs(through(bucket, proxy.url)).size(KEY) == 1
        assert proxy.num_torn == 1


@pytest.mark.parametrize("after", [0, 10, 30])
def test_an_answer_cut_among_its_headers_is_none(bucket, behind, after):
    behind.put(f"a/prefix/{KEY}", b"x")
    with torn(bucket.endpoint, is_download=True) as proxy:
        proxy.tear([after])
        with pytest.raises(Unavailable):
            S3Blobs(through(bucket, proxy.url)).size(KEY)


# ---- the start ---------------------------------------------------------------------------------


def test_a_bucket_that_can_be_written_is_usable_and_stays_empty(bucket, behind):
    require_usable(bucket)
    assert behind.objects() == []


def test_a_missing_bucket_is_named(endpoint):
    missing = Bucket("no-such-bucket", "", endpoint, "us-east-1", is_path_style=True)
    with pytest.raises(
        BucketUnusable, match=rf"'no-such-bucket' at {endpoint}: expected the bucket"
    ):
        require_usable(missing)


def test_credentials_that_are_refused_are_said_and_not_shown(bucket):
    auth = f"{bucket.endpoint}/moto-api/reset-auth"
    assert httpx.post(auth, content="0").is_success
    try:
        with pytest.raises(BucketUnusable, match="expected permission to list") as raised:
            require_usable(bucket)
    finally:
        httpx.post(auth, content="inf")
    assert SECRET_KEY not in str(raised.value)


def test_missing_credentials_are_said(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(BucketUnusable, match="expected credentials, in AWS_ACCESS_KEY_ID"):
        require_usable(bucket)


def test_a_store_that_is_away_at_the_start_is_waited_for(bucket, caplog):
    require_usable(through(bucket, NOWHERE))
    assert "does not answer; checkpoints wait" in caplog.text


def test_the_service_ends_with_one_readable_line(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("ROADLESS_HOME", str(tmp_path))
    monkeypatch.setenv("ROADLESS_BLOBS", "s3://no-such-bucket/some/prefix")
    monkeypatch.setenv("ROADLESS_S3_ENDPOINT", endpoint)
    monkeypatch.setenv("ROADLESS_S3_PATH_STYLE", "true")
    with pytest.raises(SystemExit, match=r"cannot store checkpoints: bucket 'no-such-bucket'"):
        service_main.main()


def test_secrets_are_in_no_log(bucket, source, caplog):
    caplog.set_level(logging.INFO)
    require_usable(bucket)
    S3Blobs(bucket).put(KEY, source)
    require_usable(through(bucket, NOWHERE))
    assert caplog.records
    assert SECRET_KEY not in caplog.text
    assert ACCESS_KEY not in caplog.text


@pytest.mark.parametrize(
    ("url", "name", "prefix"),
    [
        ("s3://models", "models", ""),
        ("s3://models/", "models", ""),
        ("s3://models/a", "models", "a"),
        ("s3://models/a/b.c/", "models", "a/b.c"),
    ],
)
def test_the_url_of_a_bucket(url, name, prefix):
    bucket = Bucket.at(url, endpoint=None, region=None, is_path_style=False)
    assert (bucket.name, bucket.prefix) == (name, prefix)


# ---- memory ------------------------------------------------------------------------------------

_ROUND_TRIP = """
import hashlib, resource, sys
from pathlib import Path
from roadless.service.storage.s3_blobs import S3Blobs
from roadless.service.storage.s3_bucket import Bucket

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

name, endpoint, path = sys.argv[1:]
blobs = S3Blobs(Bucket(name, "", endpoint, "us-east-1", is_path_style=True))
blobs.size('warm')
before, size = peak(), Path(path).stat().st_size
blobs.put("a/b/c/d/e", Path(path))
digest = hashlib.sha256()
for chunk in blobs.read("a/b/c/d/e", 0, size):
    digest.update(chunk)
print(peak() - before, digest.hexdigest())
"""


def test_a_file_is_never_held_in_memory(bucket, tmp_path):
    """In a process of its own, since the server of the test has it in memory in this one."""
    path, content = tmp_path / "large", random.Random(1).randbytes(96 << 20)
    path.write_bytes(content)
    command = [sys.executable, "-c", _ROUND_TRIP, bucket.name, bucket.endpoint, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    grown_mib, sha256 = result.stdout.split()
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert int(grown_mib) < 48
