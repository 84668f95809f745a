"""A credential through the whole system: it opens the data, and is found nowhere afterwards."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from s3_guarded import REGION, Guarded, guarded_s3
from stack import Stack, rank_pids, wait_for_end, wait_for_step

from roadless.service.client.client import ApiError, Client
from roadless.service.client.secrets import Secrets
from roadless.service.contract.states import Phase, Reason
from roadless.worker.runner.ray_cluster import Head, start_head

NAMES = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]


@pytest.fixture(scope="module")
def store() -> Iterator[Guarded]:
    with guarded_s3() as store:
        yield store


@pytest.fixture(scope="module")
def head(store: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A node that knows where the store is, and has no key of it."""
    environment = {
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, environment):
        head = start_head(tmp_path_factory.mktemp("ray"), num_cpus=2)
    yield head
    head.stop()


@pytest.fixture(scope="module")
def stack(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("secrets") / "home", head)
    yield running
    running.close()


@pytest.fixture(scope="module")
def table(store: Guarded) -> str:
    """1000 rows in a bucket that only the store's key opens."""
    numbers = np.random.default_rng(0).normal(size=(1000, 3))
    labels = (numbers.sum(axis=1) > 0).astype(int)
    rows = [
        ",".join(map(repr, [*row, label]))
        for row, label in zip(numbers.tolist(), labels.tolist(), strict=True)
    ]
    return store.put("private", "table.csv", "\n".join(["a,b,c,label", *rows]).encode())


def on_table(url: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": {"kind": "preset", "name": "mlp", "hidden": [8]},
        "data": {"kind": "files", "format": "csv", "path": url, "target": "label"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.02, "warmup_steps": 5},
        "training": {"batch_size": 48, "seed": 1},
        "parallelism": {"num_workers": 2},
        "secrets": NAMES,
        **fields,
    }


def put_keys(client: Client, store: Guarded, *, secret_key: str | None = None) -> None:
    secrets = Secrets(client)
    secrets.put("AWS_ACCESS_KEY_ID", store.access_key)
    secrets.put("AWS_SECRET_ACCESS_KEY", secret_key or store.secret_key)


def test_a_job_reads_with_a_key_that_is_found_nowhere_else(
    stack: Stack, client: Client, head: Head, store: Guarded, table: str
) -> None:
    """Not in a log, event, file or table, nor in what the kernel shows of the ranks."""
    put_keys(client, store)
    spec = on_table(table, evaluation={"every_steps": 500})
    job_id = client.submit(spec).id
    wait_for_step(client, job_id, 20)
    attempt = client.job(job_id).attempt
    assert attempt is not None
    shown = [proc_of(pid) for pid in rank_pids(attempt.id)]
    assert len(shown) >= 2
    assert all(b"AWS_ENDPOINT_URL" in content for content in shown)
    client.stop(job_id)
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.STOPPED, job.message
    events = "".join(event.model_dump_json() for event in client.events(job_id))
    told = job.model_dump_json() + events + dump_of(stack.home / "roadless.db")
    for value in (store.access_key, store.secret_key):
        assert not [content for content in shown if value.encode() in content]
        assert value not in told
        assert files_with(stack.home, value) == []
        assert files_with(head.folder, value) == []


def proc_of(pid: int) -> bytes:
    process = Path("/proc") / str(pid)
    return (process / "environ").read_bytes() + (process / "cmdline").read_bytes()


def dump_of(database: Path) -> str:
    with sqlite3.connect(database) as connection:
        return "\n".join(connection.iterdump())


def files_with(folder: Path, value: str) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and value.encode() in path.read_bytes():
            found.append(path)
    return found


def test_a_wrong_key_fails_the_job_once_and_mending_it_is_enough(
    client: Client, store: Guarded, table: str
) -> None:
    put_keys(client, store, secret_key="not-the-key-of-the-store")
    spec = on_table(table, budget={"max_steps": 5}, parallelism={"num_workers": 1})
    job = wait_for_end(client, client.submit(spec).id)
    assert (job.phase, job.reason) == (Phase.FAILED, Reason.DATA_UNREADABLE)
    assert "403" in (job.message or "")
    put_keys(client, store)
    client.retry(job.id)
    job = wait_for_end(client, job.id)
    assert job.phase is Phase.SUCCEEDED, job.message
    assert job.attempt is not None
    assert job.attempt.fence == 2


def test_a_job_that_does_not_name_the_key_reads_nothing(client: Client, table: str) -> None:
    """Although what is prepared lies on the node, and the key in the project."""
    spec = on_table(table, secrets=[], parallelism={"num_workers": 1})
    job = wait_for_end(client, client.submit(spec).id)
    assert (job.phase, job.reason) == (Phase.FAILED, Reason.DATA_FORBIDDEN)


def test_a_secret_deleted_while_its_job_waits_is_named(
    client: Client, store: Guarded, table: str
) -> None:
    put_keys(client, store)
    running = client.submit(on_table(table)).id
    wait_for_step(client, running, 1)
    waiting = client.submit(on_table(table)).id
    Secrets(client).delete("AWS_SECRET_ACCESS_KEY")
    client.stop(running)
    job = wait_for_end(client, waiting)
    assert (job.phase, job.reason) == (Phase.FAILED, Reason.SECRET_UNAVAILABLE)
    assert "AWS_SECRET_ACCESS_KEY was deleted; put it again" in (job.message or "")
    with pytest.raises(ApiError, match="AWS_SECRET_ACCESS_KEY"):
        client.submit(on_table(table))
