"""What every launcher does, whichever way it starts ranks: start, end and secrets, for real."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from worker_drills import STAND_IN, is_alive, make_launch, read_note, wait_until

from roadless.worker.agent.fork_launcher import ForkLauncher
from roadless.worker.agent.launcher import PRELOAD, Exited, Launcher, LaunchError
from roadless.worker.agent.node_launcher import NodeLauncher
from roadless.worker.agent.spawn_launcher import SpawnLauncher

pytestmark = pytest.mark.usefixtures("stand_in_path")

Make = Callable[..., Launcher]

KINDS = ("fork", "spawn", "node")


def make_launcher(kind: str, scratch: Path, **options: Any) -> Launcher:
    """Return a launcher whose ranks are stand-ins, unless the options say otherwise."""
    options = {"on_exit": lambda exited: None, "entry": STAND_IN, "preload": (), **options}
    match kind:
        case "fork":
            return ForkLauncher(scratch=scratch, **options)
        case "spawn":
            return SpawnLauncher(**options)
        case _:
            return NodeLauncher(scratch=scratch, **options)


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return partial(make_launcher, request.param, tmp_path)


@pytest.fixture
def exits() -> list[Exited]:
    return []


@pytest.fixture
def launcher(make: Make, exits: list[Exited]) -> Iterator[Launcher]:
    launcher = make(on_exit=exits.append)
    launcher.wait_ready(20)
    yield launcher
    launcher.close()


def test_rank_gets_its_facts_in_a_session_of_its_own(launcher: Launcher, tmp_path: Path) -> None:
    launch = make_launch(tmp_path / "att_1", rank=3, local_rank=1, world_size=4, gpu_ids=("5", "7"))
    launcher.launch([launch])
    note = read_note(tmp_path / "att_1", rank=3)
    assert (note["rank"], note["local_rank"], note["world_size"]) == (3, 1, 4)
    assert note["session"] == note["pid"]
    assert note["environ"]["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert note["oom_score_adj"] == "1000"


def test_rank_has_no_pipe_of_its_server_and_writes_to_its_log(
    launcher: Launcher, tmp_path: Path
) -> None:
    launcher.launch([make_launch(tmp_path), make_launch(tmp_path, rank=1)])
    read_note(tmp_path)
    note = read_note(tmp_path, rank=1)
    assert note["pipes"] == 0
    assert note["fds"] == ["/dev/null", *[str(tmp_path / "rank-1.log")] * 2]


def test_secrets_reach_a_rank_through_a_descriptor_only(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROADLESS_RUNNER_TOKEN", "runner-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray-secret")
    launcher = make()
    try:
        launcher.launch([make_launch(tmp_path)])
        note = read_note(tmp_path)
    finally:
        launcher.close()
    assert note["token"] == "attempt-secret"
    open_to_all = note["first_environ"] + note["argv"] + json.dumps(note["environ"])
    assert "-secret" not in open_to_all


@pytest.mark.parametrize(("what", "code"), [("exit:0", 0), ("exit:3", 3), ("raise", 70)])
def test_exit_code_of_a_rank_is_told(
    launcher: Launcher, tmp_path: Path, exits: list[Exited], what: str, code: int
) -> None:
    launcher.launch([make_launch(tmp_path, what)])
    wait_until(lambda: bool(exits))
    assert exits == [Exited(attempt_id="att_1", rank=0, code=code)]


def test_exception_of_a_rank_is_in_its_log(
    launcher: Launcher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path, "raise")])
    wait_until(lambda: bool(exits))
    assert "RuntimeError: a bug in the rank" in (tmp_path / "rank-0.log").read_text()


def test_killed_rank_is_told_at_once_with_its_signal(
    launcher: Launcher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path)])
    os.kill(read_note(tmp_path)["pid"], signal.SIGKILL)
    wait_until(lambda: bool(exits), seconds=1)
    assert exits[0].code == -signal.SIGKILL


def test_kill_ends_the_ranks_of_one_attempt_only(
    launcher: Launcher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path, rank=0), make_launch(tmp_path, rank=1)])
    launcher.launch([make_launch(tmp_path / "b", attempt_id="att_2")])
    other = read_note(tmp_path / "b")
    launcher.kill("att_1")
    wait_until(lambda: len(exits) == 2)
    assert {exited.attempt_id for exited in exits} == {"att_1"}
    assert is_alive(other["pid"])


def test_what_a_rank_leaves_behind_dies_with_it(
    launcher: Launcher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path, "leave_child")])
    wait_until(lambda: bool(exits))
    child = int((tmp_path / "rank-0.log").read_text().split()[1])
    wait_until(lambda: not is_alive(child))


def test_killed_before_it_is_born_a_rank_is_told_and_gone(
    launcher: Launcher, tmp_path: Path, exits: list[Exited]
) -> None:
    """A kill that follows a launch at once finds the rank, however far it has come."""
    launcher.launch([make_launch(tmp_path)])
    launcher.kill("att_1")
    wait_until(lambda: bool(exits))
    assert exits == [Exited(attempt_id="att_1", rank=0, code=-signal.SIGKILL)]


def test_close_ends_every_rank_and_tells_so(
    make: Make, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher = make(on_exit=exits.append)
    launcher.launch([make_launch(tmp_path), make_launch(tmp_path, rank=1)])
    pids = [read_note(tmp_path, rank)["pid"] for rank in (0, 1)]
    launcher.close()
    wait_until(lambda: not any(map(is_alive, pids)), seconds=1)
    assert sorted((exited.rank, exited.code) for exited in exits) == [(0, -9), (1, -9)]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_die_with_the_agent(kind: str, tmp_path: Path) -> None:
    """Killed, an agent can tell nobody; the kernel does it."""
    program = f"""
import sys, time
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from test_launchers import make_launch, make_launcher
launcher = make_launcher({kind!r}, Path({str(tmp_path)!r}))
launcher.launch([make_launch({str(tmp_path)!r})])
time.sleep(600)
"""
    agent = subprocess.Popen([sys.executable, "-c", program])
    rank_pid = read_note(tmp_path)["pid"]
    agent.kill()
    agent.wait()
    wait_until(lambda: not is_alive(rank_pid))


# ---- by itself -----------------------------------------------------------------------------------


def test_a_spawned_rank_has_one_thread_when_its_entry_runs(tmp_path: Path) -> None:
    """As a forked one, with all that a rank imports: what it forks then is whole."""
    launcher = make_launcher("spawn", tmp_path, preload=(*PRELOAD, "roadless.worker.rank.main"))
    try:
        launcher.launch([make_launch(tmp_path)])
        wait_until((tmp_path / "started-0.json").exists, seconds=60)
        assert read_note(tmp_path)["threads"] == 1
    finally:
        launcher.close()


def test_a_spawned_rank_sees_its_gpus_from_the_first_moment(tmp_path: Path) -> None:
    launcher = make_launcher("spawn", tmp_path)
    try:
        launcher.launch([make_launch(tmp_path, gpu_ids=("3",))])
        assert "CUDA_VISIBLE_DEVICES=3" in read_note(tmp_path)["first_environ"].split("\0")
    finally:
        launcher.close()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"interpreter": "/no/such/python"}, os.EX_OSERR, "No such file"),
        ({"interpreter": "/etc/passwd"}, os.EX_OSERR, "Permission denied"),
        ({"interpreter": "/bin/false"}, 1, ""),
        ({"entry": "no_such_module:main"}, os.EX_SOFTWARE, "No module named 'no_such_module'"),
    ],
)
def test_a_rank_that_cannot_start_is_told_with_its_cause_in_the_log(
    tmp_path: Path, exits: list[Exited], options: dict[str, str], code: int, words: str
) -> None:
    launcher = make_launcher("spawn", tmp_path, on_exit=exits.append, **options)
    try:
        launcher.launch([make_launch(tmp_path / "att_1"), make_launch(tmp_path / "b", rank=1)])
        wait_until(lambda: len(exits) == 2)
    finally:
        launcher.close()
    assert {exited.code for exited in exits} == {code}
    assert words in (tmp_path / "att_1" / "rank-0.log").read_text()


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_a_launcher_outlives_whoever_fails_to_hear_of_an_end(kind: str, tmp_path: Path) -> None:
    """The thread that tells is the parent of all ranks, or of their fork server."""

    def fail(exited: Exited) -> None:
        raise RuntimeError("cannot start a thread")

    launcher = make_launcher(kind, tmp_path, on_exit=fail)
    try:
        launcher.launch([make_launch(tmp_path / "a"), make_launch(tmp_path / "b", "exit:0")])
        stays, ended = read_note(tmp_path / "a")["pid"], read_note(tmp_path / "b")["pid"]
        wait_until(lambda: not is_alive(ended))
        launcher.launch([make_launch(tmp_path / "c")])
        assert is_alive(read_note(tmp_path / "c")["pid"])
        assert is_alive(stays)
    finally:
        launcher.close()


def test_a_closed_launcher_starts_nothing_and_says_so(tmp_path: Path) -> None:
    launcher = make_launcher("spawn", tmp_path)
    launcher.close()
    with pytest.raises(LaunchError, match="closed"):
        launcher.launch([make_launch(tmp_path)])


# ---- which one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "is_forked"), [("fork", True), ("spawn", False)])
def test_a_node_starts_a_rank_as_its_launch_says(
    tmp_path: Path, method: str, is_forked: bool
) -> None:
    launcher = make_launcher("node", tmp_path)
    try:
        launcher.launch([make_launch(tmp_path, method=method)])
        assert ("roadless.worker.agent.fork_server" in read_note(tmp_path)["argv"]) is is_forked
    finally:
        launcher.close()
