"""A full disk is told as what it is, wherever the service writes, and mended by room alone."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError
from fastapi.testclient import TestClient
from played import Service
from sqlalchemy import event, text

from roadless.service.contract.ids import new_id
from roadless.service.errors import DiskFull, Unavailable
from roadless.service.main import create_app
from roadless.service.settings import Settings
from roadless.service.storage.disk import MIN_FREE_BYTES, needing_room, require_room
from roadless.service.storage.s3_bucket import translated

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def assert_full(answer):
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (503, "urn:roadless:problem:disk_full")
    assert "no disk space left" in problem["detail"]
    assert "free some" in problem["detail"], "the way out"
    assert answer.headers["retry-after"] == "1"


@pytest.fixture
def full_disk(monkeypatch):
    """Makes what is written fail with an error of the disk."""

    def fill(number):
        def fail(*_, **__):
            raise OSError(number, os.strerror(number))

        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, fail)

    return fill


# ---- what an error of the disk means -------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_no_quota_are_a_full_disk(tmp_path, number, caplog):
    with (
        pytest.raises(DiskFull, match="room for a model, saw no disk space"),
        needing_room(tmp_path, what="a model"),
    ):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in caplog.text, "for the operator, and not for the user"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_disk_that_broke_says_so(tmp_path, number):
    with pytest.raises(Unavailable, match=os.strerror(number)) as refused, needing_room(tmp_path):
        raise OSError(number, os.strerror(number))
    assert not isinstance(refused.value, DiskFull)


def test_another_error_stays_as_it_is(tmp_path):
    with pytest.raises(PermissionError), needing_room(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


# ---- /readyz -------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_readyz_says_that_nothing_can_be_written(service, full_disk, number):
    assert service.http.get("/readyz").status_code == 200
    full_disk(number)
    assert_full(service.http.get("/readyz"))
    assert service.http.get("/healthz").status_code == 200, "a restart frees nothing"


@on_sqlite
def test_readyz_says_that_almost_nothing_is_left(service, monkeypatch, settings):
    seen = os.statvfs(settings.home_dir)
    free = SimpleNamespace(
        f_blocks=seen.f_blocks, f_frsize=seen.f_frsize, f_bavail=MIN_FREE_BYTES // seen.f_frsize
    )
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    assert service.http.get("/readyz").status_code == 200
    free.f_bavail -= 1
    assert_full(service.http.get("/readyz"))
    assert list(settings.home_dir.glob(".probe-*")) == []


def test_folders_that_are_not_there_need_no_room(tmp_path):
    require_room([tmp_path / "absent"])
    require_room([])


# ---- uploads and blobs ---------------------------------------------------------------------------


@on_sqlite
def test_an_upload_to_a_full_store_is_told_and_succeeds_once_there_is_room(
    service, digits_spec, monkeypatch
):
    _, rank = service.running(digits_spec)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _no_space)
        assert_full(rank.upload(new_id("ckpt"), b"x"))
    assert rank.upload(new_id("ckpt"), b"x").status_code == 204


@on_sqlite
def test_a_folder_that_cannot_be_made_is_told_too(service, settings, digits_spec, monkeypatch):
    _, rank = service.running(digits_spec)
    assert not settings.uploads_dir.exists()
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", _no_space)
        assert_full(rank.upload(new_id("ckpt"), b"x"))
    assert rank.upload(new_id("ckpt"), b"x").status_code == 204


def _no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("code", "status"),
    [("XMinioStorageFull", 507), ("QuotaExceeded", 403), ("InsufficientStorage", 507)],
)
def test_a_bucket_that_is_full_is_one_too(code, status):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(DiskFull, match="blob store"), translated():
        raise ClientError(answer, "PutObject")


# ---- the database --------------------------------------------------------------------------------


@on_sqlite
def test_a_database_without_room_is_told_and_goes_on_once_it_has_some(service, digits_spec):
    engine = service.http.app.state.db.engine
    with engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar()
    limit = {"pages": pages}

    @event.listens_for(engine, "checkout")
    def _limit(connection, *_):
        connection.execute(f"PRAGMA max_page_count = {limit['pages']}")

    spec = {**digits_spec, "labels": {f"l{i}": "x" * 250 for i in range(60)}}
    answers = [service.post("/jobs", json=spec) for _ in range(20)]
    assert_full(answers[-1])
    assert service.get("/jobs").status_code == 200, "what is there can be read"
    limit["pages"] = 1_000_000
    assert service.post("/jobs", json=spec).status_code == 201
    num_jobs = sum(answer.status_code == 201 for answer in answers) + 1
    assert len(service.get("/jobs").json()["data"]) == num_jobs, "nothing was lost, nothing is half"


@on_postgresql
def test_so_is_one_that_another_machine_has(service):
    db = service.http.app.state.db
    raising = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
    with pytest.raises(DiskFull), db.write() as session:
        session.execute(text(raising))


# ---- a disk that is really full ------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    disk = os.statvfs(folder)
    assert disk.f_bavail == 0


def test_on_a_disk_that_is_really_full_everything_says_so_and_nothing_is_lost(
    small_disk, digits_spec
):
    settings = Settings(home=small_disk / "home", tick_seconds=3600)
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        service = Service(http, settings.home_dir)
        job_id, rank = service.running(digits_spec)
        fill(small_disk)
        assert_full(http.get("/readyz"))
        assert_full(rank.upload(new_id("ckpt"), b"x" * 100_000))
        spec = {**digits_spec, "labels": {f"l{i}": "x" * 250 for i in range(60)}}
        answers = [service.post("/jobs", json=spec) for _ in range(20)]
        assert_full(answers[-1])
        assert service.phase(job_id) == "RUNNING"
        (small_disk / "filler").unlink()
        assert http.get("/readyz").status_code == 200
        assert rank.upload(new_id("ckpt"), b"x" * 100_000).status_code == 204
        assert service.post("/jobs", json=spec).status_code == 201


def test_a_service_that_cannot_start_says_why_in_one_line(small_disk):
    fill(small_disk)
    done = subprocess.run(
        [sys.executable, "-m", "roadless.service.main"],
        env=os.environ | {"ROADLESS_HOME": str(small_disk / "home"), "ROADLESS_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("the service cannot start: expected room for")
    assert "Traceback" not in done.stderr
