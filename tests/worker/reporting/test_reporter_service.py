"""The Reporter against the real service on a real port: what the fake promises is what happens."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fake_attempt_service import eval_point, stage, step_point
from worker_drills import wait_until

from roadless.service.contract.reports.cluster import Assignment, Node, Sync
from roadless.service.contract.reports.events import Finished, Started
from roadless.service.contract.states import Reason
from roadless.service.main import create_app
from roadless.service.settings import Settings
from roadless.worker.api import AttemptApi, RunnerApi
from roadless.worker.reporting.reporter import Reporter

SPEC: dict[str, Any] = {
    "model": {"kind": "preset", "name": "mlp"},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "sgd_schedulefree"},
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def url(home: Path) -> Iterator[str]:
    settings = Settings(home=home, DATABASE_URL=f"sqlite:///{home / 'test.db'}")
    home.mkdir()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    (listening,) = server.servers[0].sockets
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def user(url: str, home: Path) -> Iterator[httpx.Client]:
    token = (home / "user.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers) as client:
        yield client


@pytest.fixture
def assignment(url: str, home: Path, user: httpx.Client) -> Assignment:
    """A job that a runner has just taken."""
    assert user.post("/jobs", json=SPEC).status_code == 201
    runner = RunnerApi(url, token=(home / "runner.token").read_text().strip())
    node = Node(node_id="node", cpus=1, gpus=0, free_cpus=1, free_gpus=0)
    registered = runner.register("here", cluster="c", session="s")
    (taken,) = runner.sync(registered.runner_id, seen=Sync(nodes=[node], session="s")).start
    runner.close()
    return taken


@pytest.fixture
def api(url: str, assignment: Assignment) -> Iterator[AttemptApi]:
    with AttemptApi(url, attempt_id=assignment.attempt_id, token=assignment.token) as api:
        yield api


def test_a_whole_attempt_is_told_and_then_fenced(
    user: httpx.Client, assignment: Assignment, api: AttemptApi, tmp_path: Path
) -> None:
    reporter = Reporter(api, rank=0, folder=tmp_path / "scratch")
    reporter.say(Started(world_size=1))
    for step in range(1, 2501):
        reporter.say(step_point(step))
    reporter.say(eval_point(2500, loss=0.5))
    names = {"job_id": assignment.job_id, "attempt_id": assignment.attempt_id}
    kept = stage(tmp_path, 1, content=b"kept" * 1000, **names)
    lost = stage(tmp_path, 2, content=b"lost", **names)
    (lost.folder / "b.json").unlink()
    reporter.publish(kept)
    reporter.publish(lost)
    reporter.end(Finished(reason=Reason.BUDGET_REACHED, step=2500))
    assert reporter.close(timeout_seconds=30)

    path = f"/jobs/{assignment.job_id}"
    losses = user.get(f"{path}/metrics/train.loss", params={"buckets": 2000}).json()
    assert sum(losses["count"]) == 2500
    assert [p["step"] for p in user.get(f"{path}/eval-curve").json()["data"]] == [2500]
    (saved,) = user.get(f"{path}/checkpoints").json()["data"]
    file = user.get(f"/checkpoints/{saved['id']}/files/a.safetensors")
    assert (saved["id"], file.content) == (kept.manifest.checkpoint_id, b"kept" * 1000)
    codes = [event["code"] for event in user.get(f"{path}/events").json()["data"]]
    assert codes.count("report.refused") == 1

    late = Reporter(api, rank=0, folder=tmp_path / "late")
    late.say(step_point(2501))
    wait_until(lambda: late.heard.is_fenced)
    assert not late.close(timeout_seconds=10)
