"""Blobs in a folder: nothing outside it, nothing half, and a full disk is no fault of ours."""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest

from roadless.service.clock import utc_now
from roadless.service.errors import Unavailable
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
def part(tmp_path):
    """Where a file is before it is a blob."""
    path = tmp_path / "blobs" / "default" / "job" / "ckpt" / "hash" / ".name.part"
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
