"""The runner: what it tells and does, over a fake cluster, and once as a process on real Ray."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import list_named_actors
from worker_drills import STAND_IN, Listener, is_alive, read_note, wait_until

from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.cluster import Assignment, Node, Registered, Sync, SyncReply
from roadless.service.contract.states import Reason
from roadless.worker.api import Away, NameTaken, Refused, Replaced
from roadless.worker.rank_launch import DataSources
from roadless.worker.runner.capacity import Bundle, Held
from roadless.worker.runner.gang import Gangs, Group, NotReleased, StartFailed, View
from roadless.worker.runner.node_agents import Agents
from roadless.worker.runner.ray_cluster import Head
from roadless.worker.runner.runner import Runner

NODE = Node(node_id="n1", cpus=4, gpus=0, free_cpus=4, free_gpus=0)


def assign(attempt_id: str = "att_1", *, workers: int = 1) -> Assignment:
    return Assignment(
        attempt_id=attempt_id,
        job_id="stay",
        fence=1,
        token="attempt-secret",
        num_workers=workers,
        cpus_per_worker=1,
        gpus_per_worker=0,
    )


@dataclass
class FakeApi:
    """A service that answers what it was told to, and notes what it hears."""

    replies: list[SyncReply | Exception] = field(default_factory=list)
    heard: list[Sync] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    num_refusals: int = 0  #: registrations to refuse, since another cluster's runner has the name

    def register(self, name: str, *, cluster: str, session: str) -> Registered:
        self.names.append((name, cluster))
        self.sessions.add(session)
        if self.num_refusals:
            self.num_refusals -= 1
            raise NameTaken("another has it", status=409)
        return Registered(runner_id="run_1", lease_seconds=30)

    def sync(self, runner_id: str, *, seen: Sync) -> SyncReply:
        self.heard.append(seen)
        self.sessions.add(seen.session)
        reply = self.replies.pop(0) if self.replies else SyncReply()
        if isinstance(reply, Exception):
            raise reply
        return reply


@dataclass
class FakeCluster:
    """Two nodes at most; starts and releases go through gates that a test can close."""

    nodes: list[Node] = field(default_factory=lambda: [NODE])
    homes: dict[str, list[str | None]] = field(default_factory=dict)
    dead_ranks: set[str] = field(default_factory=set)
    still_seconds: dict[str, float] = field(default_factory=dict)  #: by node
    holders: set[str] = field(default_factory=set)
    start_gate: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    bug: Exception | None = None  #: of what nobody thought
    reason: Reason = Reason.START_FAILED
    refusals: int = 0
    started: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def look(self) -> View:
        seat = Bundle(cpus=1, gpus=0)
        groups = [
            Group(attempt_id=key, held=tuple(Held(bundle=seat, node_id=node) for node in nodes))
            for key, nodes in self.homes.items()
        ]
        ranks = {
            node.node_id: {
                key: self.still_seconds.get(node.node_id, 0.0)
                for key, nodes in self.homes.items()
                if node.node_id in nodes and key not in self.dead_ranks
            }
            for node in self.nodes
        }
        holders = frozenset(self.holders)
        return View(nodes=self.nodes, groups=groups, ranks=ranks, holders=holders)

    def start(self, assignment: Assignment) -> None:
        self.start_gate.wait(10)
        self.started.append(assignment.attempt_id)
        if self.bug:
            raise self.bug
        if self.failure:
            raise StartFailed(self.failure, reason=self.reason)
        self.homes[assignment.attempt_id] = ["n1"] * assignment.num_workers

    def release(self, attempt_id: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise NotReleased("a rank does not die")
        self.homes.pop(attempt_id, None)
        self.released.append(attempt_id)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def cluster() -> FakeCluster:
    cluster = FakeCluster()
    cluster.start_gate.set()
    return cluster


@pytest.fixture
def runner(api: FakeApi, cluster: FakeCluster, listener: Listener) -> Iterator[Runner]:
    runner = Runner(
        api=api,  # type: ignore[arg-type]
        cluster=cluster,
        service_url=listener.url,
        name="default",
        cluster_id="rack-7",
    )
    yield runner
    cluster.start_gate.set()
    runner.close()


def rounds_until(runner: Runner, is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline, "did not happen in time"
        runner.round("run_1")


def test_idle_cluster_is_all_free_and_polled_slowly(runner: Runner, api: FakeApi) -> None:
    runner.round("run_1")
    (session,) = api.sessions
    assert api.heard == [Sync(session=session, nodes=[NODE], wait_seconds=10.0)]


def test_started_attempt_is_alive_from_the_first_sync_after_its_assignment(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    cluster.start_gate.clear()
    api.replies = [SyncReply(start=[assign(workers=3)])]
    runner.round("run_1")
    runner.round("run_1")
    assert (api.heard[1].alive, api.heard[1].wait_seconds) == (["att_1"], 0.0)
    assert api.heard[1].nodes[0].free_cpus == 1
    cluster.start_gate.set()
    rounds_until(runner, lambda: api.heard[-1].wait_seconds == 1.0)
    assert {tuple(seen.alive) for seen in api.heard[1:]} == {("att_1",)}
    assert api.heard[-1].nodes[0].free_cpus == 1


def test_assignment_that_comes_again_is_started_once(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    cluster.start_gate.clear()
    api.replies = [SyncReply(start=[assign()]), SyncReply(start=[assign()])]
    runner.round("run_1")
    runner.round("run_1")
    cluster.start_gate.set()
    rounds_until(runner, lambda: api.heard[-1].wait_seconds == 1.0)
    assert cluster.started == ["att_1"]


def test_slow_start_does_not_hold_up_another(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    cluster.start_gate.clear()
    cluster.homes["att_2"] = ["n1"]
    api.replies = [SyncReply(start=[assign()]), SyncReply(stop=["att_2"])]
    rounds_until(runner, lambda: cluster.released == ["att_2"])
    assert cluster.started == []


def test_stopped_attempt_is_told_as_released_until_that_was_heard(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    cluster.homes["att_1"] = ["n1"]
    api.replies = [SyncReply(stop=["att_1"]), Away("away"), SyncReply()]
    runner.round("run_1")
    assert cluster.released == ["att_1"]
    with pytest.raises(Away):
        runner.round("run_1")
    runner.round("run_1")
    runner.round("run_1")
    assert [seen.released for seen in api.heard] == [[], ["att_1"], ["att_1"], []]
    assert api.heard[-1].alive == []


def test_release_follows_the_start_that_is_still_running(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    cluster.start_gate.clear()
    api.replies = [SyncReply(start=[assign()]), SyncReply(stop=["att_1"])]
    runner.round("run_1")
    runner.round("run_1")
    assert cluster.released == []
    cluster.start_gate.set()
    rounds_until(runner, lambda: ["att_1"] in [seen.released for seen in api.heard])
    assert cluster.homes == {}


def test_release_that_fails_is_not_told_and_tried_again(
    runner: Runner, api: FakeApi, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadless.worker.runner.runner._RELEASE_AGAIN_SECONDS", 0.01)
    cluster.homes["att_1"] = ["n1"]
    cluster.refusals = 1
    api.replies = [SyncReply(stop=["att_1"])]
    runner.round("run_1")
    runner.round("run_1")
    assert api.heard[-1].released == []
    api.replies = [SyncReply(stop=["att_1"])]
    rounds_until(runner, lambda: api.heard[-1].released == ["att_1"])


def test_failed_start_is_told_with_the_attempts_token_and_released(
    runner: Runner, api: FakeApi, cluster: FakeCluster, listener: Listener
) -> None:
    cluster.failure = "no room for 1 ranks"
    api.replies = [SyncReply(start=[assign()])]
    rounds_until(runner, lambda: ["att_1"] in [seen.released for seen in api.heard])
    call = listener.calls[0]
    assert (call.path, call.token) == ("/internal/v1/attempts/att_1/ended", "attempt-secret")
    assert (call.body["reason"], call.body["message"]) == ("start_failed", "no room for 1 ranks")
    assert api.heard[-1].alive == []


def test_failed_start_is_told_with_the_reason_that_it_has(
    runner: Runner, api: FakeApi, cluster: FakeCluster, listener: Listener
) -> None:
    cluster.failure = "no wheels here"
    cluster.reason = Reason.MODEL_FORBIDDEN
    api.replies = [SyncReply(start=[assign()])]
    rounds_until(runner, lambda: ["att_1"] in [seen.released for seen in api.heard])
    assert listener.calls[0].body["reason"] == "model_forbidden"


def test_attempt_whose_ranks_are_gone_still_counts_against_capacity(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    cluster.homes["att_1"] = ["n1", "n1"]
    runner.round("run_1")
    cluster.dead_ranks = {"att_1"}
    runner.round("run_1")
    assert [seen.alive for seen in api.heard] == [["att_1"], []]
    assert [seen.nodes[0].free_cpus for seen in api.heard] == [2, 2]


@pytest.mark.parametrize("new_home", ["n2", None, "n3"])
def test_attempt_that_lost_a_node_is_not_alive_although_ranks_are(
    runner: Runner, api: FakeApi, cluster: FakeCluster, new_home: str | None
) -> None:
    """Its bundle may lie on the dead node, nowhere, or on a node that never had a rank of it."""
    node2, node3 = (NODE.model_copy(update={"node_id": name}) for name in ("n2", "n3"))
    cluster.nodes = [NODE, node2, node3]
    cluster.homes["att_1"] = ["n1", "n2"]
    runner.round("run_1")
    cluster.nodes = [NODE, node3]
    cluster.homes["att_1"] = ["n1", new_home]
    runner.round("run_1")
    runner.round("run_1")
    assert [seen.alive for seen in api.heard] == [["att_1"], [], []]


class _Enough(Exception):
    pass


def test_runner_outlasts_a_service_that_is_away_and_registers_again_when_unknown(
    runner: Runner, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadless.worker.retry.FIRST_SECONDS", 0.001)
    unknown = Refused("no such runner", status=404)
    api.replies = [Away("down"), Away("down"), unknown, SyncReply(), _Enough()]
    with pytest.raises(_Enough):
        runner.run()
    assert api.names == [("default", "rack-7")] * 2
    assert len(api.sessions) == 1
    assert len(api.heard) == 5


@pytest.mark.parametrize("status", [401, 403])
def test_runner_whose_token_is_refused_does_not_send_it_again(
    runner: Runner, api: FakeApi, status: int
) -> None:
    api.replies = [Refused("expected a runner's token", status=status)]
    with pytest.raises(Refused):
        runner.run()
    assert len(api.heard) == 1


def test_runner_that_was_replaced_ends_instead_of_taking_its_place_again(
    runner: Runner, api: FakeApi
) -> None:
    api.replies = [SyncReply(), Replaced("another has registered", status=409)]
    with pytest.raises(Replaced):
        runner.run()
    assert len(api.names) == 1


def test_runner_waits_for_a_name_that_may_come_free(
    runner: Runner, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadless.worker.retry.FIRST_SECONDS", 0.001)
    api.num_refusals = 3
    api.replies = [SyncReply(), _Enough()]
    with pytest.raises(_Enough):
        runner.run()
    assert len(api.names) == 4


def test_runner_ends_when_its_name_does_not_come_free(
    runner: Runner, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadless.worker.runner.runner._NAME_SECONDS", 0.0)
    api.num_refusals = 100
    with pytest.raises(NameTaken, match="another has it"):
        runner.run()
    assert api.heard == []


def test_whatever_is_left_of_an_attempt_is_told(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    """Seats whose ranks are dead, and an actor whose group is gone: neither is whole."""
    cluster.homes["att_1"], cluster.homes["att_2"] = ["n1"], ["n1"]
    cluster.dead_ranks, cluster.holders = {"att_1"}, {"att_3"}
    runner.round("run_1")
    assert (api.heard[0].alive, api.heard[0].held) == (["att_2"], ["att_1", "att_2", "att_3"])


def test_ranks_of_two_nodes_stand_still_only_together(
    runner: Runner, api: FakeApi, cluster: FakeCluster
) -> None:
    cluster.nodes = [NODE, NODE.model_copy(update={"node_id": "n2"})]
    cluster.homes["att_1"] = ["n1", "n2"]
    cluster.still_seconds = {"n1": 40.0, "n2": 3.0}
    runner.round("run_1")
    assert api.heard[0].still_seconds == {"att_1": 3.0}


def test_start_that_fails_as_nobody_thought_is_told_and_released(
    runner: Runner, api: FakeApi, cluster: FakeCluster, listener: Listener
) -> None:
    cluster.bug = RuntimeError("never seen")
    api.replies = [SyncReply(start=[assign()])]
    rounds_until(runner, lambda: ["att_1"] in [seen.released for seen in api.heard])
    assert listener.calls[0].body["message"] == "RuntimeError: never seen"


# ---- as a process, on real Ray ----------------------------------------------------------------


@dataclass
class FakeService:
    """Hands out what is in ``start`` until it is alive, and stops what is in ``stop``."""

    url: str = ""
    start: list[Assignment] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)

    def answer(self, seen: Sync) -> SyncReply:
        self.syncs.append(seen)
        deadline = time.monotonic() + min(seen.wait_seconds, 2.0)
        while time.monotonic() < deadline and not (self.start or self.stop):
            time.sleep(0.005)
        known = set(seen.alive)
        self.start = [item for item in self.start if item.attempt_id not in known]
        self.stop = [item for item in self.stop if item not in seen.released]
        return SyncReply(start=self.start, stop=self.stop)


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Authorization"] == "Bearer runner-secret"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer: Any = (
                fake.answer(Sync.model_validate(body))
                if self.path == "/internal/v1/runners/run_1/sync"
                else Registered(runner_id="run_1", lease_seconds=30)
            )
            content = answer.model_dump_json().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def scratch(ray_head: Head, tmp_path: Path) -> Iterator[Path]:
    """A cluster whose agents run the stand-in; the runner finds them there by name."""
    agents = Agents(scratch=str(tmp_path), entry=STAND_IN, preload=())
    gangs = Gangs(agents=agents, service_url="http://127.0.0.1:9", data_sources=DataSources())
    gangs.wait_ready(30)
    yield tmp_path
    for group in gangs.look().groups:
        gangs.release(group.attempt_id)
    for name in list_named_actors():
        ray.kill(ray.get_actor(name))


def start_runner(head: Head, service: FakeService, log: Path) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        **head.environment,
        "ROADLESS_URL": service.url,
        "ROADLESS_RUNNER_TOKEN": "runner-secret",
    }
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "roadless.worker.runner"],
            env=environment,
            stdout=file,
            stderr=file,
        )


def test_gang_outlives_its_runner_and_the_next_one_adopts_and_releases_it(
    ray_head: Head, service: FakeService, scratch: Path, tmp_path: Path
) -> None:
    assignment = assign(new_id("att"), workers=2)
    service.start = [assignment]
    first = start_runner(ray_head, service, tmp_path / "first.log")
    try:
        pids = [read_note(scratch / assignment.attempt_id, rank)["pid"] for rank in (0, 1)]
    finally:
        first.kill()
        first.wait()
    service.syncs.clear()
    second = start_runner(ray_head, service, tmp_path / "second.log")
    try:
        wait_until(lambda: bool(service.syncs), seconds=20)
        assert service.syncs[0].alive == [assignment.attempt_id]
        assert all(map(is_alive, pids))
        service.stop = [assignment.attempt_id]
        wait_until(lambda: not service.stop)
        assert not any(map(is_alive, pids))
    finally:
        second.terminate()
        assert second.wait(10) == 0


def test_told_to_leave_the_runner_leaves_everything_running(
    ray_head: Head, service: FakeService, scratch: Path, tmp_path: Path
) -> None:
    assignment = assign(new_id("att"))
    service.start = [assignment]
    runner = start_runner(ray_head, service, tmp_path / "runner.log")
    try:
        pid = read_note(scratch / assignment.attempt_id)["pid"]
        wait_until(lambda: service.syncs[-1].wait_seconds > 0)
    finally:
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(10) == 0
    time.sleep(0.2)
    assert is_alive(pid)
