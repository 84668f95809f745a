"""The two agents of a node, on real Ray: one does what the other, dead or frozen, cannot."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util import list_named_actors
from worker_drills import STAND_IN, Listener, is_alive, make_launch, read_note, wait_until

from roadless.worker.agent.launcher import LaunchError
from roadless.worker.runner import agent_handle, node_agents
from roadless.worker.runner.node_agents import Agents
from roadless.worker.runner.ray_cluster import Head


class Node:
    """The one node of the cluster, and what a test wants to know of it."""

    def __init__(self, agents: Agents, scratch: Path) -> None:
        self.agents = agents
        self.scratch = scratch
        self.node_id = ray.get_runtime_context().get_node_id()

    def look(self) -> dict[str, float]:
        self.agents.ensure([self.node_id])
        return self.agents.attempts().get(self.node_id, {})

    def wait_warm(self, number: int) -> None:
        """Until so many agents have answered that they are."""

        def are_warm() -> bool:
            self.look()
            handles = self.agents._nodes[self.node_id]
            answering = [one for one in handles if one.is_warm and not one.missed_rounds]
            return len(answering) == number

        wait_until(are_warm, seconds=60)

    def start(self, attempt_id: str, **changes: Any) -> int:
        """Launch an attempt of one rank, and return its pid."""
        launch = make_launch(attempt_id, attempt_id=attempt_id, **changes)
        self.agents.launch(attempt_id, {self.node_id: [launch]})
        pid: int = read_note(self.scratch / attempt_id)["pid"]
        return pid


def agent_of(rank_pid: int) -> psutil.Process:
    """The process that has started the rank's fork server."""
    agent = psutil.Process(rank_pid).parent().parent()  # type: ignore[union-attr]  # it has one
    assert agent is not None
    return agent


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        if process.is_running():
            process.resume()


def remove_agents() -> None:
    for name in list_named_actors():
        ray.kill(ray.get_actor(name))


def make_node(scratch: Path, *, has_standby: bool = True) -> Node:
    agents = Agents(scratch=str(scratch), entry=STAND_IN, preload=(), has_standby=has_standby)
    node = Node(agents, scratch)
    node.look()
    agents.wait_ready(30)
    return node


@pytest.fixture(scope="module")
def shared(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    yield make_node(tmp_path_factory.mktemp("scratch"))
    remove_agents()


@pytest.fixture
def node(shared: Node) -> Iterator[Node]:
    """With two agents, and without an attempt of an earlier test."""
    shared.wait_warm(2)
    yield shared
    for attempt_id in shared.look():
        assert shared.agents.kill(attempt_id)


def test_when_an_agent_is_killed_the_other_one_tells_it_at_once_and_goes_on(node: Node) -> None:
    rank_pid = node.start("att_1a")
    first = agent_of(rank_pid)
    both = {process.pid for process in first.parent().children()}  # type: ignore[union-attr]
    assert list(node.look()) == ["att_1a"]
    first.kill()
    wait_until(lambda: list(node.look()) == [])
    assert not is_alive(rank_pid)
    assert node.agents.kill("att_1a")
    again = node.start("att_1b")
    assert agent_of(again).pid in both, "waited for a new one"
    node.wait_warm(2)
    assert list(node.look()) == ["att_1b"]
    assert is_alive(again)
    assert node.agents.kill("att_1b")


def test_the_end_of_an_agent_is_reported_by_the_other_one_once(
    node: Node, listener: Listener
) -> None:
    """The runner may be away, or about to look in a second."""
    first = agent_of(node.start("att_2a", service_url=listener.url))
    first.kill()
    call = listener.wait_for_call()
    assert (call.path, call.token) == ("/internal/v1/attempts/att_2a/ended", "attempt-secret")
    assert call.body["reason"] == "rank_died"
    assert call.body["exits"] == [{"rank": 0, "code": -9}]
    assert "the node agent that had started its ranks died" in call.body["message"]
    assert node.agents.kill("att_2a")
    node.wait_warm(2)
    assert len(listener.calls) == 1


@pytest.mark.parametrize(("what", "reports"), [("exit:0", 0), ("exit:3", 1), ("stay", 0)])
def test_the_other_agent_reports_no_end_that_is_none_of_an_agent(
    node: Node, listener: Listener, what: str, reports: int
) -> None:
    attempt_id = f"att_3a_{what}"
    node.start(attempt_id, job_id=what, service_url=listener.url)
    if what == "stay":
        assert node.agents.kill(attempt_id)
    wait_until(lambda: list(node.look()) == [])
    time.sleep(0.3)
    assert len(listener.calls) == reports


def test_when_a_fork_server_is_killed_the_next_rank_does_not_wait_for_a_new_one(node: Node) -> None:
    rank_pid = node.start("att_4a")
    first = agent_of(rank_pid)
    server = psutil.Process(rank_pid).parent()
    assert server is not None
    with frozen(first):  # so that no new one is warm, however quick the machine is
        server.kill()
        wait_until(lambda: not is_alive(rank_pid))
        node.look()
        assert agent_of(node.start("att_4b")).pid != first.pid
    node.wait_warm(2)
    assert node.agents.kill("att_4a")
    assert node.agents.kill("att_4b")


def test_ranks_of_a_frozen_agent_are_seen_and_killed_and_others_start(node: Node) -> None:
    rank_pid = node.start("att_5a")
    first = agent_of(rank_pid)
    with frozen(first):
        assert list(node.look()) == ["att_5a"]
        assert is_alive(node.start("att_5b"))
        assert sorted(node.look()) == ["att_5a", "att_5b"]
        assert node.agents.kill("att_5a")
        assert not is_alive(rank_pid)
        assert list(node.look()) == ["att_5b"]
    node.wait_warm(2)
    assert list(node.look()) == ["att_5b"]
    assert node.agents.kill("att_5b")


def test_a_launch_that_an_agent_does_not_answer_is_asked_of_the_other_and_happens_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It froze after its last answer to the runner, and hears of the launch once it thaws."""
    first = agent_of(node.start("att_20a"))
    assert node.agents.kill("att_20a")
    monkeypatch.setattr(node_agents, "_LAUNCH_SECONDS", 1.0)
    with frozen(first):
        rank_pid = node.start("att_20b")
    assert agent_of(rank_pid).pid != first.pid
    node.wait_warm(2)
    assert list(node.look()) == ["att_20b"]
    assert is_alive(rank_pid)


def test_another_runner_finds_the_ranks_that_the_agent_on_standby_has_started(
    node: Node,
) -> None:
    first = agent_of(node.start("att_6a"))
    with frozen(first):
        node.look()
        rank_pid = node.start("att_6b")
        assert sorted(make_node(node.scratch).look()) == ["att_6a", "att_6b"]
    assert is_alive(rank_pid)
    assert node.agents.kill("att_6a")
    assert node.agents.kill("att_6b")


def test_a_launch_that_fails_says_so_in_the_agents_own_words(node: Node) -> None:
    (node.scratch / "claims" / node.node_id).mkdir(parents=True, exist_ok=True)
    (node.scratch / "claims" / node.node_id / "att_8a").write_text("in the way")
    with pytest.raises(LaunchError, match=r"^expected room for .*att_8a, saw .*exists"):
        node.start("att_8a")
    assert is_alive(node.start("att_8b"))
    assert node.agents.kill("att_8b")


def test_an_agent_that_is_silent_for_too_long_is_replaced_and_its_ranks_with_it(
    shared: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_handle, "SILENT_SECONDS", 2.0)
    remove_agents()
    node = make_node(tmp_path, has_standby=False)
    node.wait_warm(1)
    rank_pid = node.start("att_7a")
    first = agent_of(rank_pid)
    with frozen(first):
        assert list(node.look()) == ["att_7a"]
        wait_until(lambda: list(node.look()) == [], seconds=60)
        wait_until(lambda: not is_alive(rank_pid), seconds=60)
    node.wait_warm(1)
    assert is_alive(node.start("att_7b"))
    assert node.agents.kill("att_7b")
