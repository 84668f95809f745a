"""The whole service on a bucket: what ranks upload users download, also when the store was away."""

import io
import tarfile
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from played import Service
from s3_server import client, new_bucket, s3_server
from tearing import torn

from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.main import create_app
from roadless.service.scheduling.housekeeping import Housekeeping
from roadless.service.settings import Settings
from roadless.service.storage import s3_bucket

CONTENT = bytes(i * i % 251 for i in range(2_500_000))
LATER = timedelta(hours=2)


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint):
    return new_bucket(endpoint)


@pytest.fixture
def proxy(endpoint):
    with torn(endpoint) as proxy:
        yield proxy


@pytest.fixture
def settings(tmp_path, bucket, proxy):
    return Settings(
        home=tmp_path / "home",
        DATABASE_URL=None,
        tick_seconds=3600,
        blobs=f"s3://{bucket.name}/{bucket.prefix}",
        s3_endpoint=proxy.url,
        s3_path_style=True,
    )


@pytest.fixture
def service(settings, monkeypatch):
    monkeypatch.setattr(s3_bucket, "TRIES", 1)
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        yield Service(http, settings.home_dir)


@pytest.fixture
def keys(bucket):
    api = client(bucket)

    def keys():
        return [one["Key"] for one in api.list_objects_v2(Bucket=bucket.name).get("Contents", [])]

    return keys


@pytest.fixture
def home(service, settings):
    state = service.http.app.state
    return Housekeeping(
        state.db, state.blobs, state.dataset_blobs, state.wheel_blobs, settings.uploads_dir
    )


def test_what_a_rank_uploads_is_in_the_bucket_and_comes_back(service, settings, digits_spec, keys):
    job_id, rank = service.running(digits_spec)
    checkpoint_id = rank.save(1, content=CONTENT)
    (key,) = keys()
    assert key.startswith(f"a/prefix/blobs/default/{job_id}/{checkpoint_id}/")
    assert not (settings.home_dir / "blobs").exists()
    file = f"/checkpoints/{checkpoint_id}/files/model.safetensors"
    assert service.get(file).content == CONTENT
    headers = {**service.user, "Range": "bytes=1000000-1999999"}
    part = service.http.get(f"/v1{file}", headers=headers)
    assert (part.status_code, part.content) == (206, CONTENT[1_000_000:2_000_000])
    archive = service.get(f"/checkpoints/{checkpoint_id}/download").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.extractfile("model.safetensors").read() == CONTENT


def test_the_next_attempt_fetches_its_state_from_the_bucket(service, digits_spec):
    _, first = service.running(digits_spec)
    checkpoint_id = first.save(1, kind="resume", content=CONTENT)
    first.ended()
    second = service.claim(released=[first.assignment["attempt_id"]])
    url = f"{second.url}/checkpoints/{checkpoint_id}/files/model.safetensors"
    assert service.http.get(url, headers=second.headers).content == CONTENT


def test_retention_deletes_in_the_bucket(service, digits_spec, keys):
    _, rank = service.running(digits_spec)
    ids = [rank.save(step, kind="resume") for step in (1, 2, 3)]
    assert {key.split("/")[5] for key in keys()} == set(ids[1:])


def test_orphans_are_swept_from_the_bucket(service, digits_spec, home, keys):
    _, rank = service.running(digits_spec)
    listed, orphan = rank.save(1), new_id("ckpt")
    rank.upload(orphan, b"x")
    rank.ended()
    home.clean_up(utc_now())
    assert len(keys()) == 2, "too fresh to judge"
    home.clean_up(utc_now() + LATER)
    assert [key.split("/")[5] for key in keys()] == [listed]


def test_while_the_store_is_away_users_and_ranks_are_told_to_come_again(
    service, digits_spec, proxy, settings
):
    job_id, rank = service.running(digits_spec)
    checkpoint_id, waiting = rank.save(1, content=CONTENT), new_id("ckpt")
    proxy.is_away = True
    for answer in (
        service.get(f"/checkpoints/{checkpoint_id}/files/model.safetensors"),
        service.get(f"/checkpoints/{checkpoint_id}/download"),
        rank.upload(waiting, CONTENT),
        rank.send([{**rank.saved(waiting, 2, kind="eval", loss=1.0, content=CONTENT), "seq": 3}]),
    ):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"] == "the blob store does not answer; try again"
    assert list(settings.uploads_dir.iterdir()) == []
    assert service.job(job_id)["phase"] == "RUNNING", "everything else goes on"
    proxy.is_away = False
    assert rank.upload(waiting, CONTENT).status_code == 204
    answer = rank.report(rank.saved(waiting, 2, kind="eval", loss=1.0, content=CONTENT))
    assert answer.status_code == 200, answer.text
    assert service.get(f"/checkpoints/{waiting}/files/model.safetensors").content == CONTENT


def test_the_service_starts_while_the_store_is_away(settings, proxy):
    proxy.is_away = True
    with TestClient(create_app(settings)) as http:
        assert http.get("/readyz").status_code == 200
