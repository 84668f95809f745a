"""A download that is cut off leaves nothing open, and HEAD of one reads nothing."""

import gc
import http.client
import os
import time
import urllib.parse
from contextlib import contextmanager

import pytest

from roadless.service.storage.local_blobs import LocalBlobs

CONTENT = b"x" * (64 << 20)  # more than the sockets' buffers hold


@pytest.fixture
def database_url(tmp_path):
    """Downloads do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def stored(service, digits_spec):
    """The rank of a job, and its one checkpoint."""
    _, rank = service.running(digits_spec)
    return rank, rank.save(1, content=CONTENT)


@pytest.fixture
def opened(monkeypatch):
    """Everything that was read from the blob store; no garbage collection helps it."""
    found, read = [], LocalBlobs.read

    def reading(self, *arguments):
        found.append(read(self, *arguments))
        return found[-1]

    monkeypatch.setattr(LocalBlobs, "read", reading)
    gc.disable()
    yield found
    gc.enable()


def all_closed(opened, *, seconds=10.0):
    """Whether all files are closed, soon."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if all(content._file.closed for content in opened):
            return True
        time.sleep(0.02)
    return False


@contextmanager
def asked(url, method, path, headers):
    where = urllib.parse.urlsplit(url)
    link = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    link.request(method, path, headers=headers)
    yield link.getresponse()
    link.close()


def paths(rank, checkpoint_id):
    """Where the file is told: to users, as a tar, and to ranks."""
    user = f"/v1/checkpoints/{checkpoint_id}"
    return [
        (f"{user}/files/model.safetensors", "user"),
        (f"{user}/download", "user"),
        (f"{rank.url}/checkpoints/{checkpoint_id}/files/model.safetensors", "rank"),
    ]


def test_a_client_that_leaves_in_the_middle_leaves_no_file_open(service, url, stored, opened):
    rank, checkpoint_id = stored
    for path, who in paths(rank, checkpoint_id):
        headers = service.user if who == "user" else rank.headers
        with asked(url, "GET", path, headers) as answer:
            assert answer.status == 200
            assert len(answer.read(1000)) == 1000
    assert len(opened) == 3
    assert all_closed(opened)


def test_head_of_a_download_tells_its_length_and_reads_nothing(
    service, url, stored, opened, monkeypatch
):
    rank, checkpoint_id = stored
    monkeypatch.setattr("roadless.service.storage.local_blobs._FileContent.__next__", None)
    for path, who in paths(rank, checkpoint_id)[:2]:
        headers = service.user if who == "user" else rank.headers
        with asked(url, "HEAD", path, headers) as answer:
            assert answer.status == 200
            assert int(answer.headers["Content-Length"]) >= len(CONTENT)
            assert answer.read() == b""
    assert len(opened) == 2
    assert all_closed(opened)


def test_a_file_that_is_missing_closes_those_opened_before_it(service, digits_spec, opened):
    _, rank = service.running(digits_spec)
    kept, lost = rank.save(1, content=b"kept"), rank.save(2, content=b"lost")
    blobs = service.http.app.state.blobs
    manifest = service.get(f"/checkpoints/{kept}").json()["files"]
    blobs.delete(f"default/{rank.assignment['job_id']}/{lost}")
    assert service.get(f"/checkpoints/{lost}/download").status_code == 404
    assert len(manifest) == 1
    assert all_closed(opened)


def test_a_download_to_its_end_closes_its_file(service, stored, opened):
    rank, checkpoint_id = stored
    for path, who in paths(rank, checkpoint_id):
        headers = service.user if who == "user" else rank.headers
        assert CONTENT[:100] in service.http.get(path, headers=headers).content
    assert all_closed(opened)
    assert not any(str(checkpoint_id) in name for name in _open_files())


def _open_files():
    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue
