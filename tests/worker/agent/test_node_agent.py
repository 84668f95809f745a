"""The node agent: launches once, kills for good, and reports the deaths that nobody asked for."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest
from worker_drills import STAND_IN, Listener, is_alive, make_launch, read_note, wait_until

from roadless.worker.agent.fork_launcher import ForkLauncher
from roadless.worker.agent.launcher import Exited, LaunchError
from roadless.worker.agent.node_agent import Killed, NodeAgent, NodeState
from roadless.worker.rank_launch import RankLaunch

pytestmark = pytest.mark.usefixtures("stand_in_path")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[NodeAgent]:
    make_launcher = partial(ForkLauncher, entry=STAND_IN, preload=())
    agent = NodeAgent(node_id="n1", scratch=str(tmp_path), make_launcher=make_launcher)
    agent.ready(20)
    yield agent
    agent.close()


def test_launch_twice_starts_ranks_once(agent: NodeAgent, tmp_path: Path) -> None:
    agent.launch("att_1", [make_launch("att_1")])
    pid = read_note(tmp_path / "att_1")["pid"]
    (tmp_path / "att_1" / "started-0.json").unlink()
    agent.launch("att_1", [make_launch("att_1")])
    agent.launch("att_2", [make_launch("att_2", attempt_id="att_2")])
    read_note(tmp_path / "att_2")
    assert not (tmp_path / "att_1" / "started-0.json").exists()
    assert is_alive(pid)
    assert sorted(agent.attempts()) == ["att_1", "att_2"]


def test_killed_attempt_is_gone_when_kill_returns_and_never_starts_again(
    agent: NodeAgent, tmp_path: Path
) -> None:
    agent.launch("att_1", [make_launch("att_1"), make_launch("att_1", rank=1)])
    pids = [read_note(tmp_path / "att_1", rank)["pid"] for rank in (0, 1)]
    assert agent.kill("att_1") == Killed(is_gone=True, is_barred=True)
    assert not any(map(is_alive, pids))
    agent.launch("att_1", [make_launch("att_1")])
    assert list(agent.attempts()) == []


def test_launch_that_comes_after_the_kill_starts_nothing(agent: NodeAgent) -> None:
    assert agent.kill("att_1") == Killed(is_gone=True, is_barred=True)
    agent.launch("att_1", [make_launch("att_1")])
    assert list(agent.attempts()) == []


def test_killed_rank_is_reported_within_a_second_and_its_siblings_die(
    agent: NodeAgent, tmp_path: Path, listener: Listener
) -> None:
    launches = [make_launch("att_1", rank=rank, service_url=listener.url) for rank in (0, 1)]
    agent.launch("att_1", launches)
    first, second = (read_note(tmp_path / "att_1", rank)["pid"] for rank in (0, 1))
    killed_at = time.monotonic()
    os.kill(second, signal.SIGKILL)
    call = listener.wait_for_call()
    assert call.at - killed_at < 1.0
    assert (call.path, call.token) == ("/internal/v1/attempts/att_1/ended", "attempt-secret")
    assert call.body["reason"] == "rank_died"
    assert call.body["exits"] == [{"rank": 1, "code": -9}]
    assert call.body["message"] == "rank 1 was killed by SIGKILL"
    wait_until(lambda: not is_alive(first))
    wait_until(lambda: list(agent.attempts()) == [])
    assert len(listener.calls) == 1


def test_death_carries_the_last_words_of_the_rank(agent: NodeAgent, listener: Listener) -> None:
    agent.launch("att_1", [make_launch("att_1", "exit:3", service_url=listener.url)])
    message = listener.wait_for_call().body["message"]
    assert message == "rank 0 exited with code 3\nlast words of the rank"


def test_death_is_told_again_until_the_service_is_back(
    agent: NodeAgent, listener: Listener
) -> None:
    listener.answers = [503, 502, 204]
    agent.launch("att_1", [make_launch("att_1", "exit:3", service_url=listener.url)])
    wait_until(lambda: len(listener.calls) == 3)
    time.sleep(0.3)
    assert len(listener.calls) == 3


@pytest.mark.parametrize("what", ["exit:0", "stay"])
def test_good_ends_and_wanted_ends_are_not_reported(
    agent: NodeAgent, tmp_path: Path, listener: Listener, what: str
) -> None:
    agent.launch("att_1", [make_launch("att_1", what, service_url=listener.url)])
    read_note(tmp_path / "att_1")
    if what == "stay":
        agent.kill("att_1")
    wait_until(lambda: list(agent.attempts()) == [])
    time.sleep(0.3)
    assert listener.calls == []


def test_lost_fork_server_ends_its_attempts_with_a_report(
    tmp_path: Path, listener: Listener
) -> None:
    launchers: list[ForkLauncher] = []

    def make_launcher(*, scratch: Path, on_exit: Callable[[Exited], None]) -> ForkLauncher:
        launchers.append(ForkLauncher(scratch=scratch, on_exit=on_exit, entry=STAND_IN, preload=()))
        return launchers[0]

    agent = NodeAgent(node_id="n1", scratch=str(tmp_path), make_launcher=make_launcher)
    try:
        agent.launch("att_1", [make_launch("att_1", service_url=listener.url)])
        read_note(tmp_path / "att_1")
        server_pid = launchers[0].server_pid
        assert server_pid is not None
        os.kill(server_pid, signal.SIGKILL)
        assert listener.wait_for_call().body["exits"] == [{"rank": 0, "code": -9}]
        agent.launch("att_2", [make_launch("att_2", attempt_id="att_2")])
        read_note(tmp_path / "att_2")
    finally:
        agent.close()


class _BrokenLauncher:
    def __init__(self, *, scratch: Path, on_exit: Callable[[Exited], None]) -> None:
        self.is_broken = True
        self.launched: list[RankLaunch] = []

    def launch(self, launches: Sequence[RankLaunch]) -> None:
        if self.is_broken:
            raise LaunchError("does not come up")
        self.launched.extend(launches)

    def kill(self, attempt_id: str) -> None: ...
    def pids(self) -> dict[str, list[int]]:
        return {}

    def wait_ready(self, timeout_seconds: float) -> None: ...
    def close(self) -> None: ...


def test_attempt_that_could_not_be_launched_is_not_counted_as_running(tmp_path: Path) -> None:
    agent = NodeAgent(node_id="n1", scratch=str(tmp_path), make_launcher=_BrokenLauncher)
    with pytest.raises(LaunchError, match="does not come up"):
        agent.launch("att_1", [make_launch("att_1")])
    assert list(agent.attempts()) == []


def test_kill_says_so_when_a_rank_does_not_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadless.worker.agent.node_agent._KILL_SECONDS", 0.05)
    launcher = _BrokenLauncher(scratch=tmp_path, on_exit=lambda _: None)
    launcher.is_broken = False
    agent = NodeAgent(node_id="n1", scratch=str(tmp_path), make_launcher=lambda **_: launcher)
    agent.launch("att_1", [make_launch("att_1")])
    assert not agent.kill("att_1").is_gone
    assert list(agent.attempts()) == ["att_1"]


def test_only_the_newest_folders_of_ended_attempts_stay(tmp_path: Path) -> None:
    """And those of wheels, which have a bound of their own."""
    launcher = _BrokenLauncher(scratch=tmp_path, on_exit=lambda _: None)
    launcher.is_broken = False
    agent = NodeAgent(node_id="n1", scratch=str(tmp_path), make_launcher=lambda **_: launcher)
    for number in range(60):
        (tmp_path / f"att_{number:02}").mkdir()
        os.utime(tmp_path / f"att_{number:02}", (number, number))
    (tmp_path / "environments").mkdir()
    os.utime(tmp_path / "environments", (0, 0))
    agent.launch("att_99", [make_launch("att_99", attempt_id="att_99")])
    left = sorted(path.name for path in tmp_path.iterdir())
    kept = [f"att_{number:02}" for number in range(10, 60)]
    assert left == [*kept, "claims", "environments"]


def test_an_attempt_whose_ranks_are_all_frozen_stands_still_until_they_thaw(
    agent: NodeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadless.worker.agent.movement.LOOK_SECONDS", 0.0)
    agent.launch("att_1", [make_launch("att_1", "work"), make_launch("att_1", "work", rank=1)])
    pids = [read_note(tmp_path / "att_1", rank)["pid"] for rank in (0, 1)]
    os.kill(pids[0], signal.SIGSTOP)
    started = time.monotonic()
    while time.monotonic() - started < 0.5:
        assert agent.attempts()["att_1"] < 0.4, "the other rank works"
        time.sleep(0.05)
    os.kill(pids[1], signal.SIGSTOP)
    wait_until(lambda: agent.attempts()["att_1"] > 1.0)
    os.kill(pids[1], signal.SIGCONT)
    wait_until(lambda: agent.attempts()["att_1"] < 0.5)


def test_an_agent_outlives_a_scratch_folder_that_cannot_be_used(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.write_text("in the way")
    make_launcher = partial(ForkLauncher, entry=STAND_IN, preload=())
    agent = NodeAgent(node_id="n1", scratch=str(scratch), make_launcher=make_launcher)
    try:
        with pytest.raises(LaunchError, match=r"expected room for .*scratch.*, saw .*directory"):
            agent.launch("att_1", [make_launch("att_1")])
        assert agent.state() == NodeState(is_warm=False, still_seconds={})
        assert agent.kill("att_1") == Killed(is_gone=True, is_barred=False)
        scratch.unlink()
        wait_until(lambda: agent.state().is_warm, seconds=60)
        agent.launch("att_2", [make_launch("att_2", attempt_id="att_2")])
        assert is_alive(read_note(scratch / "att_2")["pid"])
    finally:
        agent.close()


# ---- two of one node -----------------------------------------------------------------------------


@pytest.fixture
def other(agent: NodeAgent, tmp_path: Path) -> Iterator[NodeAgent]:
    make_launcher = partial(ForkLauncher, entry=STAND_IN, preload=())
    other = NodeAgent(node_id="n1", scratch=str(tmp_path), make_launcher=make_launcher)
    other.ready(20)
    yield other
    other.close()


def test_each_agent_of_a_node_sees_and_kills_the_ranks_of_the_other(
    agent: NodeAgent, other: NodeAgent, tmp_path: Path
) -> None:
    agent.launch("att_1", [make_launch("att_1")])
    pid = read_note(tmp_path / "att_1")["pid"]
    assert list(other.state().still_seconds) == ["att_1"]
    assert other.kill("att_1") == Killed(is_gone=True, is_barred=True)
    assert not is_alive(pid)
    wait_until(lambda: list(agent.attempts()) == [])


def test_an_attempt_that_one_agent_has_or_had_is_not_launched_by_the_other(
    agent: NodeAgent, other: NodeAgent, tmp_path: Path
) -> None:
    agent.launch("att_1", [make_launch("att_1")])
    pid = read_note(tmp_path / "att_1")["pid"]
    (tmp_path / "att_1" / "started-0.json").unlink()
    other.launch("att_1", [make_launch("att_1")])
    agent.kill("att_1")
    other.launch("att_1", [make_launch("att_1")])
    other.launch("att_2", [make_launch("att_2", attempt_id="att_2")])
    read_note(tmp_path / "att_2")
    assert not (tmp_path / "att_1" / "started-0.json").exists()
    assert not is_alive(pid)


def test_an_agent_does_not_start_ranks_again_that_began_under_a_dead_one(
    agent: NodeAgent, other: NodeAgent, tmp_path: Path
) -> None:
    agent.launch("att_1", [make_launch("att_1")])
    read_note(tmp_path / "att_1")
    agent.close()
    with pytest.raises(LaunchError, match="those of att_1 have been started on this node before"):
        other.launch("att_1", [make_launch("att_1")])
    assert list(other.attempts()) == []


def test_a_launch_that_is_late_in_a_fork_server_begins_nothing_after_a_kill(
    agent: NodeAgent, other: NodeAgent, tmp_path: Path, listener: Listener
) -> None:
    """The other agent has said that nothing is left, and the seats may be given away."""
    server = psutil.Process(agent_server(agent))
    server.suspend()
    agent.launch("att_1", [make_launch("att_1", service_url=listener.url)])
    assert other.kill("att_1") == Killed(is_gone=True, is_barred=True)
    server.resume()
    wait_until(lambda: agent._book.running == {})
    assert not (tmp_path / "att_1" / "started-0.json").exists()


def agent_server(agent: NodeAgent) -> int:
    launcher = agent._launcher
    assert isinstance(launcher, ForkLauncher)
    assert launcher.server_pid is not None
    return launcher.server_pid


def test_free_port_can_be_listened_on(agent: NodeAgent) -> None:
    assert 1024 <= agent.free_port() <= 65535
