"""Blobs in a folder: nothing outside it, nothing half, and a full disk is no fault of ours."""

import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from roadless.service.clock import utc_now
from roadless.service.errors import Unavailable
from roadless.service.storage import local_blobs
from roadless.service.storage.local_blobs import LocalBlobs

KEY = "default/job/ckpt/hash/name"
OTHER_DISK = Path("/dev/shm")


@pytest.fixture
def blobs(tmp_path):
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"0123456789")
    return path


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Where the next file is before it is a blob."""
    token = "0" * 32
    monkeypatch.setattr(local_blobs.secrets, "token_hex", lambda num_bytes: token)
    path = tmp_path / "blobs" / "default" / "job" / "ckpt" / "hash" / f".{token}.part"
    path.parent.mkdir(parents=True)
    return path


def test_a_key_cannot_leave_the_folder(blobs, source):
    with pytest.raises(AssertionError, match="leaves the store"):
        blobs.put("../outside", source)


def test_a_full_disk_is_told_and_the_file_stays_for_another_try(blobs, part, caplog):
    if OTHER_DISK.stat().st_dev == part.parent.stat().st_dev:
        pytest.skip("needs a second disk to copy from")
    part.symlink_to("/dev/full")
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as folder:
        source = Path(folder) / "source"
        source.write_bytes(b"0123456789")
        with pytest.raises(Unavailable, match="no disk space"):
            blobs.put(KEY, source)
        assert "is full" in caplog.text
        assert not part.is_symlink(), "what a broken copy has taken is given back"
        assert blobs.size(KEY) is None
        blobs.put(KEY, source)
    assert blobs.size(KEY) == 10


def test_a_broken_copy_is_dropped_once_it_is_old(blobs, part):
    part.write_bytes(b"01234")
    assert blobs.drop_unfinished(before=utc_now() - timedelta(hours=1)) == 0
    os.utime(part, (0, 0))
    assert blobs.drop_unfinished(before=utc_now() - timedelta(hours=1)) == 1
    assert not part.exists()


def test_the_same_content_stored_twice_at_once_is_stored(blobs, tmp_path, monkeypatch):
    """Both are next to the blob's place before either has it."""
    together, fsync = threading.Barrier(2, timeout=10), local_blobs._fsync

    def flush(path):
        fsync(path)
        if path.name.endswith(".part"):
            together.wait()

    def put(number):
        source = tmp_path / f"source-{number}"
        source.write_bytes(b"0123456789")
        blobs.put(KEY, source)

    monkeypatch.setattr(local_blobs, "_fsync", flush)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put, range(2)))
    assert blobs.size(KEY) == 10
    assert os.listdir(tmp_path / "blobs/default/job/ckpt/hash") == ["name"]


@pytest.mark.parametrize("stage", ["moved", "in place"])
def test_a_folder_deleted_while_a_file_arrives_is_told(blobs, source, tmp_path, monkeypatch, stage):
    fsync = local_blobs._fsync

    def flush(path):
        if path.name.endswith(".part") == (stage == "moved"):
            shutil.rmtree(tmp_path / "blobs" / "default")
        fsync(path)

    monkeypatch.setattr(local_blobs, "_fsync", flush)
    with pytest.raises(Unavailable, match="deleted meanwhile"):
        blobs.put(KEY, source)
    assert blobs.size(KEY) is None


def test_folders_that_go_while_they_are_listed_are_left_out(blobs, source, tmp_path):
    for name in "abc":
        source.write_bytes(b"x")
        blobs.put(f"default/{name}/ckpt/hash/name", source)
    listed = blobs.folders(before=utc_now() + timedelta(hours=1))
    first = next(listed)
    shutil.rmtree(tmp_path / "blobs" / "default")
    assert list(listed) == []
    assert first.endswith("/ckpt")
