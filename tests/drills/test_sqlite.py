"""SQLite that another process holds, or that comes back older than ranks and runner know it."""

import contextlib
import os
import shutil
import signal
import sqlite3
import time

import httpx
import pytest
from pairs import LONG
from stack import wait_until
from up_stack import SERVICE

SECONDS = 20


@contextlib.contextmanager
def held(path, how):
    """Another process's transaction, with the lock of a writer or of all."""
    other = sqlite3.connect(path, timeout=60, isolation_level=None)
    other.execute(f"BEGIN {how}")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_lock_that_another_process_holds_for_20_s(up, drill, how):
    """Readers are answered, writers get 503 with Retry-After, and no attempt ends."""

    def fault(pair):
        with held(up.home / "roadless.db", how):
            end = time.monotonic() + SECONDS
            read = up.ask(f"/v1/jobs/{pair.ids[0]}")
            began = time.monotonic()
            written = up.ask(f"/v1/jobs/{pair.ids[0]}/evaluate", method="POST")
            waited = time.monotonic() - began
            time.sleep(max(0.0, end - time.monotonic()))
        assert read.status_code == 200
        assert (written.status_code, written.headers["retry-after"]) == (503, "1")
        return f"a writer was told after {waited:.1f} s"

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_a_database_that_comes_back_older(up, drill):
    """A power cut, a backup that is restored: what it has forgotten is reported or made again.

    Both jobs end well, and no attempt of the forgotten time writes into what came after it.
    """

    def fault(pair):
        backup = up.home.with_suffix(".backup")
        source, target = sqlite3.connect(up.home / "roadless.db"), sqlite3.connect(backup)
        with contextlib.closing(source), contextlib.closing(target):
            source.backup(target)
        wait_until(lambda: up.ask(f"/v1/jobs/{pair.ids[0]}").json()["progress"]["step"] > 200)
        os.kill(up.process.pid, signal.SIGSTOP)
        try:
            os.kill(up.pid(SERVICE), signal.SIGKILL)
            time.sleep(0.5)
            for end in ("-wal", "-shm"):
                (up.home / f"roadless.db{end}").unlink(missing_ok=True)
            shutil.copyfile(backup, up.home / "roadless.db")
        finally:
            os.kill(up.process.pid, signal.SIGCONT)
        wait_until(up.is_ready)

    drill(up, fault, steps=LONG)


def test_no_request_waits_for_the_deletion_of_a_large_job(up, figure):
    """A job of 600 MB of points is deleted; others are answered, and the file becomes smaller."""
    path = up.home / "roadless.db"
    with up.client() as client:
        job_id = client.submit(LARGE).id
        client.cancel(job_id)
    row = (job_id, "train.loss", 1, 2, 1, 1, 1, b"\0" * (512 * 1024))
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as other:
        columns = "job_id, name, fence, level, first_step, last_step, count, data"
        for _ in range(120):
            rows = [row] * 10
            other.executemany(
                f"INSERT INTO metric_chunks ({columns}) VALUES (?,?,?,?,?,?,?,?)", rows
            )
            other.commit()
    before = path.stat().st_size
    began, waits = time.monotonic(), []
    assert up.ask(f"/v1/jobs/{job_id}", method="DELETE", timeout=120).status_code == 204
    answered = time.monotonic() - began
    while path.stat().st_size > before / 4:
        assert time.monotonic() - began < 300, "the file does not become smaller"
        asked = time.monotonic()
        name = {"name": f"changed {len(waits)}", "format": "bytes"}
        assert up.ask("/v1/datasets", method="POST", json=name).status_code == 201
        waits.append(time.monotonic() - asked)
        time.sleep(0.05)
    taken = time.monotonic() - began
    figure(f"{before >> 20} MiB -> {path.stat().st_size >> 20} MiB in {taken:.0f} s")
    figure(f"DELETE: {answered:.2f} s; the longest of {len(waits)} writes: {max(waits):.2f} s")
    assert max(waits) < 10
    assert httpx.get(f"{up.url}/readyz").is_success


LARGE = {
    "name": "large",
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
    "training": {"batch_size": 48},
    "parallelism": {"num_workers": 2, "cpus_per_worker": 64},
    "budget": {"max_steps": 1},
}
