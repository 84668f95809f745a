"""Probes: each answers within its bound, whatever hangs and however many ask."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from roadless.service.db.session import Database
from roadless.service.http.health import READY_SECONDS, Readiness


@pytest.fixture
def database_url(tmp_path):
    """What hangs is played; the bound of a real database is its own test's."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@contextmanager
def hanging(monkeypatch, owner, name):
    """Calls of the function hang until the block ends; yields the list of those that do."""
    calls, go_on = [], threading.Event()
    usual = getattr(owner, name)

    def hang(*args):
        calls.append(threading.get_ident())
        assert go_on.wait(60)
        return usual(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, hang)
        try:
            yield calls
        finally:
            go_on.set()


@pytest.fixture
def readiness(service, settings):
    """Probes with a short bound."""
    made = Readiness(service.http.app.state.db, settings, seconds=0.2)
    service.http.app.state.add(Readiness, made)
    return made


@pytest.mark.parametrize(("owner", "name"), [(Database, "ping"), (os, "statvfs")])
def test_readyz_answers_though_something_hangs_and_recovers(
    service, readiness, monkeypatch, owner, name
):
    with hanging(monkeypatch, owner, name) as calls:
        for _ in range(3):
            answer = service.http.get("/readyz")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "within 0.2 s" in answer.json()["detail"]
        assert service.http.get("/healthz").status_code == 200
        assert len(calls) == 1, "what hangs, hangs once"
    until = time.monotonic() + 30
    while service.http.get("/readyz").status_code != 200:
        assert time.monotonic() < until


async def looks():
    """How many are under way or wait for a thread."""
    return sum(task.get_coro().__name__ == "_in_thread" for task in asyncio.all_tasks())


def test_many_who_ask_share_one_look(service, readiness, monkeypatch):
    with hanging(monkeypatch, Database, "ping") as calls, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: service.http.get("/readyz"), range(20)))
        assert {answer.status_code for answer in answers} == {503}
        assert len(calls) == 1
        assert service.http.portal.call(looks) == 1


def test_readyz_needs_none_of_the_users_threads(service, settings):
    held, go_on = threading.Barrier(settings.request_threads + 1, timeout=30), threading.Event()

    @service.http.app.get("/slow")
    def slow() -> None:
        held.wait()
        go_on.wait(30)

    with ThreadPoolExecutor(settings.request_threads + 1) as pool:
        for _ in range(settings.request_threads):
            pool.submit(service.http.get, "/slow")
        held.wait()
        try:
            answer = pool.submit(service.http.get, "/readyz").result(10 * READY_SECONDS)
            assert answer.status_code == 200
        finally:
            go_on.set()


def test_healthz_asks_nothing(service, monkeypatch):
    with hanging(monkeypatch, Database, "read"), hanging(monkeypatch, Database, "write"):
        assert service.http.get("/healthz").status_code == 200
