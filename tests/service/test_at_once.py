"""The same upload twice at once, and uploads beside what ends them: one outcome, and no fault."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from played import Rank, Service
from wheel_maker import make_wheel

from roadless.service.contract.ids import new_id
from roadless.service.settings import Settings
from roadless.service.storage import local_blobs

TIMES = 6
CONTENT = b"a,label\n1,0\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home", DATABASE_URL=database_url, tick_seconds=3600, allow_wheels=True
    )


@pytest.fixture(autouse=True)
def _meeting_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has brought a file next to its place waits a moment for another who does the same."""
    meeting, fsync = threading.Barrier(2), local_blobs._fsync

    def flush(path: Path) -> None:
        fsync(path)
        if path.name.endswith(".part"):
            try:
                meeting.wait(timeout=0.2)
            except threading.BrokenBarrierError:
                meeting.reset()

    monkeypatch.setattr(local_blobs, "_fsync", flush)


def at_once(asked: Sequence[Callable[[], Any]]) -> list[Any]:
    """The answers to requests that begin together."""
    together = threading.Barrier(len(asked))

    def ask(one: Callable[[], Any]) -> Any:
        together.wait()
        return one()

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(ask, asked))


def statuses(answers: Sequence[Any]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


# ---- data sets ----------------------------------------------------------------------------------


def opened(service: Service) -> str:
    answer = service.post("/datasets", json={"name": new_id("x"), "format": "csv"})
    assert answer.status_code == 201
    return str(answer.json()["id"])


def part(service: Service, dataset_id: str, *, name: str = "a.csv", offset: int = 0) -> Any:
    return service.http.put(
        f"/v1/datasets/{dataset_id}/files/{name}",
        params={"offset": offset},
        content=CONTENT,
        headers={**service.user, "X-Content-SHA256": SHA256},
    )


def test_the_same_part_twice_at_once_is_there_once(service, settings):
    dataset_id = opened(service)
    answers = at_once([lambda: part(service, dataset_id)] * TIMES)
    assert statuses(answers) == {200: TIMES}
    assert {answer.json()["size"] for answer in answers} == {len(CONTENT)}
    assert service.post(f"/datasets/{dataset_id}/seal").json()["files"][0]["size"] == len(CONTENT)
    stored = settings.home_dir / "datasets" / "default" / dataset_id
    assert len([path for path in stored.rglob("*") if path.is_file()]) == 1
    assert list(settings.uploads_dir.iterdir()) == []


def test_parts_beside_a_seal_are_in_it_or_refused(service):
    dataset_id = opened(service)
    assert part(service, dataset_id).status_code == 200
    size = len(CONTENT)
    parts = [
        lambda n=n: part(service, dataset_id, name="a.csv", offset=n * size) for n in range(1, 4)
    ]
    *answers, sealed = at_once([*parts, lambda: service.post(f"/datasets/{dataset_id}/seal")])
    assert set(statuses(answers)) <= {200, 409}
    if sealed.status_code != 200:  # what was there had a gap
        assert sealed.status_code == 409
        return
    there = service.get(f"/datasets/{dataset_id}/files/a.csv").json()["parts"]
    assert len(there) == 1 + statuses(answers)[200]


def test_parts_beside_a_deletion_leave_nothing(service, settings):
    dataset_id = opened(service)

    def delete() -> Any:
        return service.http.delete(f"/v1/datasets/{dataset_id}", headers=service.user)

    *answers, deleted = at_once([lambda: part(service, dataset_id)] * TIMES + [delete])
    assert deleted.status_code == 204
    # 503: its folder went while it was stored; the next try finds no data set.
    assert set(statuses(answers)) <= {200, 404, 503}
    assert part(service, dataset_id).status_code == 404
    assert list((settings.home_dir / "datasets").rglob("part")) == []


# ---- wheels, secrets, idempotency keys ----------------------------------------------------------


def test_the_same_wheel_twice_at_once_is_one_wheel(service, settings, tmp_path):
    path = make_wheel(tmp_path)
    content = path.read_bytes()
    headers = {**service.user, "X-Content-SHA256": hashlib.sha256(content).hexdigest()}
    url = f"/v1/wheels/{path.name}"
    answers = at_once([lambda: service.http.put(url, content=content, headers=headers)] * TIMES)
    assert statuses(answers) == {200: TIMES - 1, 201: 1}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert len(service.get("/wheels").json()["data"]) == 1
    stored = settings.home_dir / "wheels"
    assert len([path for path in stored.rglob("*") if path.is_file()]) == 1


def test_the_same_secret_twice_at_once_is_new_once(service):
    def put() -> Any:
        body = {"value": "hf_0123456789"}
        return service.http.put("/v1/secrets/HF_TOKEN", json=body, headers=service.user)

    assert statuses(at_once([put] * TIMES)) == {204: TIMES - 1, 201: 1}
    assert len(service.get("/secrets").json()["data"]) == 1


def test_the_same_action_with_one_key_at_once_is_done_once(service, digits_spec):
    job_id = service.submit(digits_spec)
    headers = {"Idempotency-Key": "extend"}
    url = f"/jobs/{job_id}/extend"
    asked = [lambda: service.post(url, json={"steps": 10}, headers=headers)] * TIMES
    answers = at_once(asked)
    assert statuses(answers) == {202: TIMES}
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == TIMES - 1
    assert service.job(job_id)["spec"]["budget"]["max_steps"] == 510


# ---- checkpoint files ---------------------------------------------------------------------------


@pytest.fixture
def rank(service: Service, digits_spec: dict[str, Any]) -> Rank:
    _, rank = service.running(digits_spec)
    return rank


def test_the_same_checkpoint_file_twice_at_once_is_stored(service, rank, settings):
    """As ranks that share a model upload what they have in common."""
    checkpoint_id = new_id("ckpt")
    answers = at_once([lambda: rank.upload(checkpoint_id, CONTENT)] * TIMES)
    assert statuses(answers) == {204: TIMES}
    saved = rank.saved(checkpoint_id, 1, kind="eval", loss=1.0, content=CONTENT)
    assert rank.report(saved).status_code == 200
    url = f"/v1/checkpoints/{checkpoint_id}/files/model.safetensors"
    assert service.http.get(url, headers=service.user).content == CONTENT
    assert list(settings.uploads_dir.iterdir()) == []


def test_the_same_part_of_a_checkpoint_file_at_once_has_one_writer(service, rank):
    """The others are told to try again, or where the file is by then."""
    checkpoint_id = new_id("ckpt")
    url = f"{rank.url}/checkpoints/{checkpoint_id}/files/model.safetensors"
    headers = {**rank.headers, "X-Content-SHA256": SHA256}
    told = {"Upload-Offset": "0", "Upload-Length": str(len(CONTENT))}

    def put() -> Any:
        return service.http.put(url, content=CONTENT, headers=headers | told)

    def look() -> Any:
        return service.http.head(url, headers=headers)

    answers = at_once([put] * TIMES + [look] * TIMES)
    assert set(statuses(answers[:TIMES])) <= {204, 409, 503}
    assert set(statuses(answers[TIMES:])) == {204}
    for _ in range(TIMES):  # as the uploader does: look, then go on from there
        if look().headers["upload-complete"] == "?1":
            break
        put()
    assert look().headers["upload-offset"] == str(len(CONTENT))
