"""Reports and syncs have a path of their own: what users ask for never starves a heartbeat."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from played import Rank, Service, step_event

from roadless.service.contract.ids import new_id
from roadless.service.http.dependencies import AppState
from roadless.service.ingest.routes import BLOB_THREADS
from roadless.service.main import create_app
from roadless.service.settings import Settings

REQUEST_THREADS = 4


@pytest.fixture
def http(database_url, tmp_path):
    settings = Settings(
        home=tmp_path / "home",
        DATABASE_URL=database_url,
        request_threads=REQUEST_THREADS,
        report_threads=BLOB_THREADS,
        tick_seconds=3600,
    )
    with TestClient(create_app(settings)) as http:
        yield http


@pytest.fixture
def service(http, tmp_path):
    return Service(http, tmp_path / "home")


@contextmanager
def held(pool: ThreadPoolExecutor, act: Any, *, times: int) -> Iterator[None]:
    """Have ``times`` calls of ``act`` under way; each is given what to wait in."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        begun.release()
        go_on.wait(60)

    for _ in range(times):
        pool.submit(act, wait)
    for _ in range(times):
        assert begun.acquire(timeout=30)
    try:
        yield
    finally:
        go_on.set()


def test_nothing_that_users_hold_keeps_a_report_or_a_rank_waiting(http, service, digits_spec):
    """All their threads, and in each two connections of the database: one reads in the other."""
    state: AppState = http.app.state
    waits: list[Any] = []

    @http.app.get("/slow")
    def slow() -> None:
        with state.db.read(), state.db.read():
            waits[0]()

    def ask(wait: Any) -> None:
        waits.append(wait)
        http.get("/slow")

    _, rank = service.running(digits_spec)
    with ThreadPoolExecutor(32) as pool, held(pool, ask, times=REQUEST_THREADS):
        answer = pool.submit(rank.report, step_event(2)).result(30)
        assert (answer.status_code, answer.json()["ack_seq"]) == (200, 2)
        assert pool.submit(rank.brief).result(30)["job_id"] == rank.assignment["job_id"]
        alive = [rank.assignment["attempt_id"]]
        assert pool.submit(service.sync, alive=alive).result(30)["stop"] == []


def test_a_blob_store_that_hangs_keeps_only_checkpoints_waiting(
    http, service, digits_spec, monkeypatch
):
    """Every thread that may ask it hangs: as many as all reports have."""
    _, rank = service.running(digits_spec)
    hanging: list[Any] = []
    monkeypatch.setattr(http.app.state.blobs, "size", lambda _key: hanging[0](), raising=True)

    def announce(wait: Any) -> None:
        hanging.append(wait)
        other = Rank(rank.http, rank.assignment, last_seq=1)
        event = other.saved(new_id("ckpt"), 1, kind="eval", loss=1.0, content=b"x")
        other.report(event)

    with ThreadPoolExecutor(32) as pool, held(pool, announce, times=BLOB_THREADS):
        answer = pool.submit(rank.report, step_event(2)).result(30)
        assert (answer.status_code, answer.json()["ack_seq"]) == (200, 2)
