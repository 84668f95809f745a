"""The fork server and its client: birth, death and secrets of ranks, as real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worker_drills import STAND_IN, is_alive, make_launch, read_note, wait_until

from worker.launcher import (
    PRELOAD,
    Exited,
    ForkLauncher,
    LaunchError,
    RankLaunch,
    rank_environment,
)

pytestmark = pytest.mark.usefixtures("stand_in_path")

MakeLauncher = Callable[[], ForkLauncher]


@pytest.fixture
def exits() -> list[Exited]:
    return []


@pytest.fixture
def launcher(tmp_path: Path, exits: list[Exited]) -> Iterator[ForkLauncher]:
    launcher = ForkLauncher(scratch=tmp_path, on_exit=exits.append, entry=STAND_IN, preload=())
    launcher.wait_ready(20)
    yield launcher
    launcher.close()


def test_rank_launch_survives_json(tmp_path: Path) -> None:
    launch = make_launch(tmp_path, gpu_ids=("1",), data_roots=("/data",), entry_points=("a:b",))
    assert RankLaunch.from_json(json.loads(json.dumps(launch.to_json()))) == launch


def test_token_is_not_in_the_repr_of_a_launch(tmp_path: Path) -> None:
    assert "attempt-secret" not in repr(make_launch(tmp_path))


def test_rank_gets_its_facts_in_a_session_of_its_own(
    launcher: ForkLauncher, tmp_path: Path
) -> None:
    launch = make_launch(tmp_path / "att_1", rank=3, local_rank=1, world_size=4, gpu_ids=("5", "7"))
    launcher.launch([launch])
    note = read_note(tmp_path / "att_1", rank=3)
    assert (note["rank"], note["local_rank"], note["world_size"]) == (3, 1, 4)
    assert note["session"] == note["pid"]
    assert note["environ"]["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert note["oom_score_adj"] == "1000"


def test_rank_has_no_pipe_of_its_server_and_writes_to_its_log(
    launcher: ForkLauncher, tmp_path: Path
) -> None:
    launcher.launch([make_launch(tmp_path), make_launch(tmp_path, rank=1)])
    note = read_note(tmp_path, rank=1)
    assert note["pipes"] == 0
    assert note["fds"] == ["/dev/null", *[str(tmp_path / "rank-1.log")] * 2]


def test_secrets_reach_a_rank_through_the_pipe_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROADLESS_RUNNER_TOKEN", "runner-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray-secret")
    launcher = ForkLauncher(scratch=tmp_path, on_exit=lambda _: None, entry=STAND_IN, preload=())
    try:
        launcher.launch([make_launch(tmp_path)])
        note = read_note(tmp_path)
    finally:
        launcher.close()
    assert note["token"] == "attempt-secret"
    open_to_all = note["first_environ"] + note["argv"] + json.dumps(note["environ"])
    assert "-secret" not in open_to_all


def test_environment_of_ranks_keeps_what_is_not_ours() -> None:
    kept = rank_environment(
        {"PATH": "/bin", "RAY_ADDRESS": "x", "ROADLESS_URL": "y", "DATABASE_URL": "z"}
    )
    assert kept == {"PATH": "/bin", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize(("what", "code"), [("exit:0", 0), ("exit:3", 3), ("raise", 70)])
def test_exit_code_of_a_rank_is_told(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited], what: str, code: int
) -> None:
    launcher.launch([make_launch(tmp_path, what)])
    wait_until(lambda: bool(exits))
    assert exits == [Exited(attempt_id="att_1", rank=0, code=code)]


def test_exception_of_a_rank_is_in_its_log(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path, "raise")])
    wait_until(lambda: bool(exits))
    assert "RuntimeError: a bug in the rank" in (tmp_path / "rank-0.log").read_text()


def test_killed_rank_is_told_at_once_with_its_signal(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path)])
    os.kill(read_note(tmp_path)["pid"], signal.SIGKILL)
    wait_until(lambda: bool(exits), seconds=1)
    assert exits[0].code == -signal.SIGKILL


def test_kill_ends_the_ranks_of_one_attempt_only(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path, rank=0), make_launch(tmp_path, rank=1)])
    launcher.launch([make_launch(tmp_path / "b", attempt_id="att_2")])
    other = read_note(tmp_path / "b")
    launcher.kill("att_1")
    wait_until(lambda: len(exits) == 2)
    assert {exited.attempt_id for exited in exits} == {"att_1"}
    assert is_alive(other["pid"])


def test_what_a_rank_leaves_behind_dies_with_it(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path, "leave_child")])
    wait_until(lambda: bool(exits))
    child = int((tmp_path / "rank-0.log").read_text().split()[1])
    wait_until(lambda: not is_alive(child))


def test_ranks_die_with_their_server_and_the_next_server_serves(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path)])
    rank_pid, server_pid = read_note(tmp_path)["pid"], launcher.server_pid
    assert server_pid is not None
    os.kill(server_pid, signal.SIGKILL)
    wait_until(lambda: bool(exits))
    assert exits == [Exited(attempt_id="att_1", rank=0, code=-signal.SIGKILL)]
    assert not is_alive(rank_pid)
    launcher.launch([make_launch(tmp_path / "b", attempt_id="att_2")])
    assert is_alive(read_note(tmp_path / "b")["pid"])


def test_server_and_ranks_die_with_the_agent_even_when_frozen(tmp_path: Path) -> None:
    """SIGSTOP keeps the server from seeing that its pipe is closed; the kernel kills it anyway."""
    program = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from worker_drills import STAND_IN, make_launch
from worker.launcher import ForkLauncher
launcher = ForkLauncher(
    scratch=Path({str(tmp_path)!r}), on_exit=print, entry=STAND_IN, preload=())
launcher.launch([make_launch({str(tmp_path)!r})])
print(launcher.server_pid, flush=True)
time.sleep(600)
"""
    agent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    server_pid = int(agent.stdout.readline())
    rank_pid = read_note(tmp_path)["pid"]
    os.kill(server_pid, signal.SIGSTOP)
    agent.kill()
    agent.communicate()
    wait_until(lambda: not is_alive(server_pid))
    wait_until(lambda: not is_alive(rank_pid))


def test_missing_entry_is_named(tmp_path: Path) -> None:
    launcher = ForkLauncher(
        scratch=tmp_path, on_exit=lambda _: None, entry="no_such_module:main", preload=()
    )
    try:
        with pytest.raises(LaunchError, match="No module named 'no_such_module'"):
            launcher.wait_ready(20)
    finally:
        launcher.close()


def test_preloaded_server_has_one_thread_and_no_ray(tmp_path: Path) -> None:
    """Several threads, or an OpenMP pool, would make forked children hang."""
    command = [sys.executable, "-m", "worker.forkserver", "--entry", STAND_IN]
    command += ["--preload", ",".join(PRELOAD), "--parent", str(os.getpid())]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=rank_environment(os.environ)
    )
    assert server.stdout is not None
    warm = json.loads(server.stdout.readline())
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    server.communicate()
    assert warm["threads"] == 1
    assert "_raylet" not in maps
    assert "libtorch" in maps
    assert server.returncode == 0


def test_fork_takes_milliseconds(launcher: ForkLauncher, tmp_path: Path) -> None:
    asked_at = time.time()
    launcher.launch([make_launch(tmp_path)])
    assert read_note(tmp_path)["at"] - asked_at < 0.5
