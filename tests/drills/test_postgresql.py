"""PostgreSQL that is cut off, silent, frozen, restarted, locked; and kills while it is in use.

Requests are answered 503 with Retry-After within a bound, probes within 2 s and a little, and no
attempt ends: ranks train on and report when it is back.
"""

import contextlib
import os
import signal
import time

import httpx
import pytest
from cuttable import proxied
from pairs import LONG
from pg_server import PgServer
from up_stack import SERVICE, frozen

SECONDS = 20
#: A check of 2 s, a connection of 5 s, a statement of 12 s; and a busy machine.
REQUEST_SECONDS = 25
PROBE_SECONDS = 8


@pytest.fixture(scope="module")
def server():
    server = PgServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def proxy(server):
    with proxied(server.url) as (url, proxy):
        proxy.url = url
        yield proxy


@pytest.fixture(scope="module")
def up(make_up, proxy):
    return make_up(environ={"ROADLESS_LEASE_SECONDS": "10", "DATABASE_URL": proxy.url})


def asked(up, pair, seconds=SECONDS):
    """Ask again and again; every request is refused in time. Return the longest times."""
    paths = {"/readyz": 0.0, f"/v1/jobs/{pair.ids[0]}": 0.0, "/healthz": 0.0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in paths:
            began = time.monotonic()
            answer = up.ask(path, timeout=60)
            paths[path] = max(paths[path], time.monotonic() - began)
            if path == "/healthz":
                assert answer.status_code == 200
            else:
                assert (answer.status_code, "retry-after" in answer.headers) == (503, True), path
        time.sleep(0.5)
    ready, job, health = paths.values()
    assert job < REQUEST_SECONDS
    assert ready < PROBE_SECONDS
    return f"503 after at most {job:.1f} s, readyz {ready:.1f} s, healthz {health:.2f} s"


def test_cut_for_20_s(up, drill, proxy):
    def fault(pair):
        proxy.cut()
        try:
            return asked(up, pair)
        finally:
            proxy.mend()

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_silent_for_20_s(up, drill, proxy):
    """Connections stay open, new ones are taken, and nothing is answered."""

    def fault(pair):
        proxy.silence()
        try:
            return asked(up, pair)
        finally:
            proxy.mend()

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_a_frozen_server_for_20_s(up, drill, server):
    def fault(pair):
        with frozen(*server.pids()):
            return asked(up, pair)

    assert drill(up, fault, steps=LONG).fences == [1, 1]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart(up, drill, server, mode):
    def fault(_pair):
        server.stop(mode)
        server.start()

    assert drill(up, fault).fences == [1, 1]


def test_a_server_that_is_stopped_for_20_s(up, drill, server):
    def fault(pair):
        server.stop("immediate")
        try:
            return asked(up, pair)
        finally:
            server.start()

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_every_backend_is_killed_ten_times(up, drill, server):
    def fault(_pair):
        for _ in range(10):
            server.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = 'drill' AND pid <> pg_backend_pid()"
            )
            time.sleep(0.5)

    assert drill(up, fault).fences == [1, 1]


def test_a_table_that_somebody_locks_for_20_s(up, drill, server):
    """The table of jobs, for readers too; a probe reads no table."""

    def fault(pair):
        longest, end = 0.0, time.monotonic() + SECONDS
        with server.locked("jobs"):
            while time.monotonic() < end:
                began = time.monotonic()
                answer = up.ask(f"/v1/jobs/{pair.ids[0]}", timeout=60)
                longest = max(longest, time.monotonic() - began)
                assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert longest < REQUEST_SECONDS
        return f"503 after at most {longest:.1f} s"

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_the_service_is_killed(up, drill):
    assert drill(up, lambda pair: os.kill(up.pid(SERVICE), signal.SIGKILL)).fences == [1, 1]


def test_a_rank_of_each_job_is_killed(up, drill):
    def fault(pair):
        for pid in (pair.ranks(0)[-1], pair.ranks(1)[-1]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    assert drill(up, fault).fences == [2, 2]


def test_nothing_of_it_is_left_in_the_probe(up):
    assert httpx.get(f"{up.url}/readyz").is_success
