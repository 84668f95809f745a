"""Downloads are byte for byte what was uploaded, and what nobody lists is swept away."""

import hashlib
import io
import os
import tarfile
import time
from dataclasses import replace
from datetime import timedelta
from unittest import mock

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.checkpoints import download, retention
from roadless.service.clock import utc_now
from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.ids import new_id
from roadless.service.errors import Unavailable
from roadless.service.main import create_app
from roadless.service.scheduling.housekeeping import KEYS_KEPT, Housekeeping
from roadless.service.storage.blobs import MemoryBlobs
from roadless.service.storage.incoming import Incoming
from roadless.service.storage.local_blobs import LocalBlobs

CONTENT = bytes(i * i % 251 for i in range(3_000_000))  # several chunks, and no round number
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def database_url(tmp_path):
    """Files do not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def stored(service, digits_spec):
    """A job's rank and the id of its one checkpoint, with CONTENT in one file."""
    _, rank = service.running(digits_spec)
    return rank, rank.save(1, content=CONTENT)


def get_file(service, checkpoint_id, **headers):
    url = f"/v1/checkpoints/{checkpoint_id}/files/model.safetensors"
    return service.http.get(url, headers={**service.user, **headers})


# ---- one file ----------------------------------------------------------------------------------


def test_a_file_is_served_whole(service, stored):
    answer = get_file(service, stored[1])
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="model.safetensors"'


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1048575-1048577", 1048575, 1048578),
        ("bytes=2999999-", 2999999, 3000000),
        ("bytes=-5", 2999995, 3000000),
        ("bytes=5-99999999", 5, 3000000),
    ],
)
def test_a_part_is_served(service, stored, header, start, stop):
    answer = get_file(service, stored[1], Range=header)
    assert (answer.status_code, answer.content) == (206, CONTENT[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/3000000"
    assert answer.headers["content-length"] == str(stop - start)


def test_a_download_that_broke_off_goes_on_where_it_was(service, stored):
    head = get_file(service, stored[1], Range="bytes=0-1234567").content
    rest = get_file(service, stored[1], **{"Range": "bytes=1234568-", "If-Range": f'"{SHA256}"'})
    assert head + rest.content == CONTENT


@pytest.mark.parametrize("header", ["bytes=0-4", "bytes=9999999-"])
def test_another_version_is_sent_whole(service, stored, header):
    answer = get_file(service, stored[1], **{"Range": header, "If-Range": '"other"'})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_part_beyond_the_end_is_refused_with_the_size(service, stored):
    answer = get_file(service, stored[1], Range="bytes=3000000-")
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */3000000"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("header", ["bytes=a-b", "bytes=0-1,4-5", "bytes=" + "9" * 5000 + "-"])
def test_a_range_that_is_none_is_ignored(service, stored, header):
    assert get_file(service, stored[1], Range=header).status_code == 200


def test_an_unchanged_file_is_not_sent_again(service, stored):
    answer = get_file(service, stored[1], **{"If-None-Match": f'"{SHA256}"'})
    assert (answer.status_code, answer.content) == (304, b"")
    assert get_file(service, stored[1], **{"If-None-Match": '"other"'}).status_code == 200


def test_a_name_that_the_manifest_lacks_is_not_found_and_the_others_are_named(service, stored):
    answer = service.get(f"/checkpoints/{stored[1]}/files/optimizer.pt")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "expected one of model.safetensors, saw 'optimizer.pt'"


def test_a_file_that_was_deleted_is_not_found_before_the_answer_begins(service, stored, settings):
    for path in (settings.home_dir / "blobs").rglob("model.safetensors"):
        path.unlink()
    for url in ("files/model.safetensors", "download"):
        answer = service.get(f"/checkpoints/{stored[1]}/{url}")
        assert (answer.status_code, answer.json()["title"]) == (404, "File deleted")


def test_a_download_outlives_the_deletion_of_its_file(tmp_path):
    """Retention may come in the middle of a download: what has begun is sent to its end."""
    blobs, source = LocalBlobs(tmp_path / "blobs"), tmp_path / "source"
    source.write_bytes(CONTENT)
    blobs.put("p/job/ckpt/hash/name", source)
    chunks = blobs.read("p/job/ckpt/hash/name", 0, len(CONTENT))
    first = next(chunks)
    blobs.delete("p/job/ckpt")
    assert first + b"".join(chunks) == CONTENT


# ---- all files ---------------------------------------------------------------------------------


def test_the_archive_holds_every_file_and_the_manifest(service, stored):
    answer = service.get(f"/checkpoints/{stored[1]}/download")
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-disposition"] == f'attachment; filename="{stored[1]}.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    assert list(files) == ["manifest.json", "model.safetensors"]
    assert files["model.safetensors"] == CONTENT
    manifest = Manifest.model_validate_json(files["manifest.json"])
    assert (manifest.checkpoint_id, manifest.files[0].sha256) == (stored[1], SHA256)


@given(st.lists(st.binary(max_size=2000), max_size=4))
def test_every_archive_is_read_back_by_the_standard_library(contents):
    files = [(f"file-{i}", len(data), iter([data])) for i, data in enumerate(contents)]
    made = b"".join(download.tar_stream(files, modified=utc_now()))
    assert len(made) == download.tar_size(len(data) for data in contents)
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        assert [tar.extractfile(member).read() for member in tar] == contents


# ---- lists -------------------------------------------------------------------------------------


def test_pages_hold_every_checkpoint_once_newest_step_first(service, digits_spec):
    spec = {**digits_spec, "checkpoints": {"keep_last": 10}}
    job_id, rank = service.running(spec)
    ids = [rank.save(step) for step in (1, 2, 3, 4, 5)]
    state = rank.save(3, kind="resume")
    seen, after = [], None
    while True:
        params = {"limit": 2, "kind": "eval"} | ({"after": after} if after else {})
        page = service.get(f"/jobs/{job_id}/checkpoints", params=params).json()
        seen += [one["id"] for one in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == ids[::-1]
    states = service.get(f"/jobs/{job_id}/checkpoints", params={"kind": "resume"}).json()["data"]
    assert [one["id"] for one in states] == [state]


def test_a_checkpoint_tells_all_that_a_stranger_needs(service, stored, digits_spec):
    told = service.get(f"/checkpoints/{stored[1]}").json()
    assert (told["kind"], told["step"], told["total_bytes"]) == ("eval", 1, len(CONTENT))
    assert told["files"] == [{"name": "model.safetensors", "size": len(CONTENT), "sha256": SHA256}]
    assert told["spec"]["optimizer"]["lr"] == 0.01
    assert told["evaluation"]["loss"] == 1.0


# ---- sweeping ----------------------------------------------------------------------------------


LATER = timedelta(hours=2)


@pytest.fixture
def home(service, settings):
    """What a sweep is given; the app itself sweeps only at its start and hourly."""
    state = service.http.app.state
    return Housekeeping(
        state.db, state.blobs, state.dataset_blobs, state.wheel_blobs, settings.uploads_dir
    )


def folders(settings):
    return sorted(path.name for path in (settings.home_dir / "blobs").glob("*/*/*"))


def test_files_whose_checkpoint_never_came_are_swept_once_their_attempt_is_over(
    service, settings, home, digits_spec
):
    _, rank = service.running(digits_spec)
    listed, orphan = rank.save(1), new_id("ckpt")
    rank.upload(orphan, b"x")
    home.clean_up(utc_now() + LATER)
    assert folders(settings) == sorted([listed, orphan]), "it may still be announced"
    rank.ended()
    home.clean_up(utc_now())
    assert folders(settings) == sorted([listed, orphan]), "too fresh to judge"
    home.clean_up(utc_now() + LATER)
    assert folders(settings) == [listed]
    assert service.get(f"/checkpoints/{listed}/files/model.safetensors").content == b"x"


def test_a_new_attempt_does_not_keep_what_an_older_one_left(service, settings, home, digits_spec):
    _, rank = service.running(digits_spec)
    rank.upload(new_id("ckpt"), b"x")
    rank.ended()
    for path in (settings.home_dir / "blobs").glob("*/*/*"):
        yesterday = (utc_now() - timedelta(days=1)).timestamp()
        os.utime(path, (yesterday, yesterday))
    service.claim(released=[rank.assignment["attempt_id"]])
    home.clean_up(utc_now())
    assert folders(settings) == []


def test_files_under_a_listed_id_in_another_jobs_folder_are_swept(
    service, settings, home, digits_spec
):
    spec = {**digits_spec, "parallelism": {"num_workers": 1}}
    _, first = service.running(spec)
    listed = first.save(1)
    other_id = service.submit(spec)
    second = service.claim(alive=[first.assignment["attempt_id"]], node={"free_cpus": 3})
    second.upload(listed, b"y")
    first.ended()
    second.ended()
    home.clean_up(utc_now() + LATER)
    assert folders(settings) == [listed]
    assert not (settings.home_dir / "blobs" / "default" / other_id / listed).exists()


def test_many_folders_are_swept_in_batches(service, settings, home, digits_spec, monkeypatch):
    monkeypatch.setattr(retention, "_FOLDERS_TOGETHER", 2)
    _, rank = service.running(digits_spec)
    for _ in range(5):
        rank.upload(new_id("ckpt"), b"x")
    rank.ended()
    assert retention.remove_unlisted(home.db, home.blobs, now=utc_now() + LATER) == 5
    assert folders(settings) == []


def test_a_store_that_fails_keeps_nothing_else_from_its_turn(service, settings, home, digits_spec):
    class Away(MemoryBlobs):
        def drop_unfinished(self, *, before):
            raise Unavailable("the blob store does not answer; try again")

    _, rank = service.running(digits_spec)
    rank.upload(new_id("ckpt"), b"x")
    rank.ended()
    left = settings.uploads_dir / "left"
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    replace(home, blobs=Away()).clean_up(utc_now() + LATER)
    assert not left.exists(), "before it"
    replace(home, dataset_blobs=Away()).clean_up(utc_now() + LATER)
    assert folders(settings) == []
    wheels = MemoryBlobs()
    wheels.drop_unfinished = mock.Mock(return_value=0)
    replace(home, blobs=Away(), dataset_blobs=Away(), wheel_blobs=wheels).clean_up(utc_now())
    wheels.drop_unfinished.assert_called_once()


def test_remains_of_uploads_are_swept(service, settings, home, digits_spec):
    _, rank = service.running(digits_spec)
    rank.upload(new_id("ckpt"), b"x")
    (settings.uploads_dir / "left").write_bytes(b"half a file")
    home.clean_up(utc_now())
    assert (settings.uploads_dir / "left").exists(), "it may be arriving"
    home.clean_up(utc_now() + LATER)
    assert not (settings.uploads_dir / "left").exists()


def test_what_has_arrived_is_not_swept_while_it_is_being_stored(settings, service, home):
    """A file of many gigabytes takes longer to be stored than a broken upload is waited for."""
    settings.uploads_dir.mkdir()
    with Incoming(settings.uploads_dir / "large") as incoming:
        home.clean_up(utc_now() + LATER)
        assert incoming.path.exists()
    home.clean_up(utc_now() + LATER)
    assert not incoming.path.exists()


def test_files_of_jobs_that_the_database_does_not_know_are_left_alone(settings, home, tmp_path):
    """They are somebody else's: of a second service, or of a database that was lost."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    theirs = new_id("ckpt")
    home.blobs.put(f"default/{new_id('job')}/{theirs}/{SHA256}/name", source)
    home.clean_up(utc_now() + LATER)
    assert folders(settings) == [theirs]


def test_copies_that_broke_off_are_swept(home, settings):
    part = settings.home_dir / "blobs" / "default" / "job" / "ckpt" / "hash" / ".name.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half a file")
    home.clean_up(utc_now() + LATER)
    assert part.exists(), "it may be arriving"
    home.clean_up(utc_now() + retention.LONGEST_PUT + LATER)
    assert not part.exists()


def test_old_idempotency_keys_are_forgotten(service, home, digits_spec):
    key = {"Idempotency-Key": "k"}
    first = service.post("/jobs", json=digits_spec, headers=key).json()["id"]
    home.clean_up(utc_now() + KEYS_KEPT - timedelta(minutes=1))
    assert service.post("/jobs", json=digits_spec, headers=key).json()["id"] == first
    home.clean_up(utc_now() + KEYS_KEPT + timedelta(minutes=1))
    assert service.post("/jobs", json=digits_spec, headers=key).json()["id"] != first


def test_the_service_sweeps_when_it_starts(settings):
    """A crash is followed by a start."""
    settings.uploads_dir.mkdir(parents=True)
    left = settings.uploads_dir / "left"
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    deadline = time.monotonic() + 10
    with TestClient(create_app(settings)):
        while left.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
