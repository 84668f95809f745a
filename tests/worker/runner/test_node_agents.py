"""The two agents of a node, on real Ray: one does what the other, dead or frozen, cannot."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
from ray.util import list_named_actors
from worker_drills import STAND_IN, is_alive, make_launch, read_note, wait_until

from roadless.worker.agent.launcher import LaunchError
from roadless.worker.runner import agent_handle
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

    def start(self, attempt_id: str) -> int:
        """Launch an attempt of one rank, and return its pid."""
        launch = make_launch(attempt_id, attempt_id=attempt_id)
        self.agents.launch(attempt_id, {self.node_id: [launch]})
        pid: int = read_note(self.scratch / attempt_id)["pid"]
        return pid


def agent_of(rank_pid: int) -> psutil.Process:
    """The process that has started the rank's fork server."""
    agent = psutil.Process(rank_pid).parent().parent()  # type: ignore[union-attr]  # it has one
    assert agent is not None
    return agent


MakeNode = Callable[..., Node]


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        if process.is_running():
            process.resume()


@pytest.fixture
def make_node(ray_head: Head, tmp_path: Path) -> Iterator[MakeNode]:
    def make(*, has_standby: bool = True) -> Node:
        agents = Agents(scratch=str(tmp_path), entry=STAND_IN, preload=(), has_standby=has_standby)
        node = Node(agents, tmp_path)
        node.look()
        agents.wait_ready(30)
        return node

    yield make
    for name in list_named_actors():
        ray.kill(ray.get_actor(name))


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    node = make_node()
    node.wait_warm(2)
    return node


def test_when_an_agent_is_killed_the_other_one_tells_it_at_once_and_goes_on(node: Node) -> None:
    rank_pid = node.start("att_1")
    first = agent_of(rank_pid)
    assert list(node.look()) == ["att_1"]
    first.kill()
    wait_until(lambda: not is_alive(rank_pid))
    assert list(node.look()) == []
    assert node.agents.kill("att_1")
    again = node.start("att_2")
    assert agent_of(again).pid != first.pid
    node.wait_warm(2)
    assert list(node.look()) == ["att_2"]
    assert is_alive(again)
    assert node.agents.kill("att_2")


def test_when_a_fork_server_is_killed_the_next_rank_does_not_wait_for_a_new_one(node: Node) -> None:
    rank_pid = node.start("att_1")
    first = agent_of(rank_pid)
    server = psutil.Process(rank_pid).parent()
    assert server is not None
    with frozen(first):  # so that no new one is warm, however quick the machine is
        server.kill()
        wait_until(lambda: not is_alive(rank_pid))
        node.look()
        assert agent_of(node.start("att_2")).pid != first.pid
    node.wait_warm(2)
    assert node.agents.kill("att_1")
    assert node.agents.kill("att_2")


def test_ranks_of_a_frozen_agent_are_seen_and_killed_and_others_start(node: Node) -> None:
    rank_pid = node.start("att_1")
    first = agent_of(rank_pid)
    with frozen(first):
        assert list(node.look()) == ["att_1"]
        assert is_alive(node.start("att_2"))
        assert sorted(node.look()) == ["att_1", "att_2"]
        assert node.agents.kill("att_1")
        assert not is_alive(rank_pid)
        assert list(node.look()) == ["att_2"]
    node.wait_warm(2)
    assert list(node.look()) == ["att_2"]
    assert node.agents.kill("att_2")


def test_another_runner_finds_the_ranks_that_the_agent_on_standby_has_started(
    node: Node, make_node: MakeNode
) -> None:
    first = agent_of(node.start("att_1"))
    with frozen(first):
        node.look()
        rank_pid = node.start("att_2")
        assert sorted(make_node().look()) == ["att_1", "att_2"]
    assert is_alive(rank_pid)
    assert node.agents.kill("att_1")
    assert node.agents.kill("att_2")


def test_an_agent_that_is_silent_for_too_long_is_replaced_and_its_ranks_with_it(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_handle, "SILENT_SECONDS", 2.0)
    node = make_node(has_standby=False)
    node.wait_warm(1)
    rank_pid = node.start("att_1")
    first = agent_of(rank_pid)
    with frozen(first):
        assert list(node.look()) == ["att_1"]
        wait_until(lambda: list(node.look()) == [], seconds=60)
        wait_until(lambda: not is_alive(rank_pid), seconds=60)
    node.wait_warm(1)
    assert is_alive(node.start("att_2"))
    assert node.agents.kill("att_2")


def test_a_launch_that_fails_says_so_in_the_agents_own_words(node: Node) -> None:
    (node.scratch / "claims" / node.node_id).mkdir(parents=True, exist_ok=True)
    (node.scratch / "claims" / node.node_id / "att_1").write_text("in the way")
    with pytest.raises(LaunchError, match=r"^LaunchError: expected room for .*att_1, saw .*exists"):
        node.start("att_1")
    assert is_alive(node.start("att_2"))
    assert node.agents.kill("att_2")
