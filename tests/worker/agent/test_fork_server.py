"""The fork server and its client: start, end and secrets of ranks, as real processes."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worker_drills import STAND_IN, is_alive, make_launch, read_note, wait_until

from roadless.worker.agent import fork_launcher
from roadless.worker.agent.fork_launcher import ForkLauncher
from roadless.worker.agent.fork_server import ForkServer
from roadless.worker.agent.launcher import PRELOAD, Exited, LaunchError, rank_environment
from roadless.worker.rank_launch import DataSources, ModelSources, RankLaunch, WheelFile

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
    launch = make_launch(
        tmp_path,
        gpu_ids=("1",),
        data_sources=DataSources(roots=("/data",), cache_bytes=7, secrets=("KEY",)),
        model_sources=ModelSources(entry_points=("a:b",), allow_hub=True),
        method="spawn",
        wheel=WheelFile(file_name="a-1-py3-none-any.whl", sha256="0" * 64),
    )
    assert RankLaunch.from_json(json.loads(json.dumps(launch.to_json()))) == launch


def test_token_is_not_in_the_repr_of_a_launch(tmp_path: Path) -> None:
    assert "attempt-secret" not in repr(make_launch(tmp_path))


def test_environment_of_ranks_keeps_what_is_not_ours() -> None:
    kept = rank_environment(
        {"PATH": "/bin", "RAY_ADDRESS": "x", "ROADLESS_URL": "y", "DATABASE_URL": "z"}
    )
    assert kept == {"PATH": "/bin", "OPENBLAS_NUM_THREADS": "1"}


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
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from worker_drills import STAND_IN, make_launch
from roadless.worker.agent.fork_launcher import ForkLauncher
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
    command = [sys.executable, "-m", "roadless.worker.agent.fork_server", "--entry", STAND_IN]
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


# ---- one that hangs ------------------------------------------------------------------------------


def is_ready(launcher: ForkLauncher) -> bool:
    try:
        launcher.wait_ready(0.0)
    except LaunchError:
        return False
    return True


@pytest.fixture
def quick_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_launcher, "_PING_SECONDS", 0.05)
    monkeypatch.setattr(fork_launcher, "_LATE_SECONDS", 0.5)
    monkeypatch.setattr(fork_launcher, "_SILENT_SECONDS", (2.0, 2.0))


@pytest.mark.usefixtures("quick_to_judge")
def test_a_frozen_server_is_replaced_and_its_ranks_are_told(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path)])
    rank_pid, server_pid = read_note(tmp_path)["pid"], launcher.server_pid
    assert server_pid is not None
    os.kill(server_pid, signal.SIGSTOP)
    wait_until(lambda: not is_ready(launcher))
    wait_until(lambda: bool(exits))
    assert exits == [Exited(attempt_id="att_1", rank=0, code=-signal.SIGKILL)]
    assert not is_alive(rank_pid)
    launcher.wait_ready(20)
    launcher.launch([make_launch(tmp_path / "b", attempt_id="att_2")])
    assert is_alive(read_note(tmp_path / "b")["pid"])


@pytest.mark.usefixtures("quick_to_judge")
def test_a_frozen_server_that_has_more_to_read_than_its_pipe_holds_is_replaced(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    assert launcher.server_pid is not None
    os.kill(launcher.server_pid, signal.SIGSTOP)
    much = "x" * 2**18
    launcher.launch([make_launch(tmp_path, rank=rank, token=much) for rank in range(8)])
    wait_until(lambda: len(exits) == 8)
    launcher.wait_ready(20)


@pytest.mark.usefixtures("quick_to_judge")
def test_a_server_that_has_nothing_to_do_lives(launcher: ForkLauncher) -> None:
    server_pid = launcher.server_pid
    time.sleep(3)
    assert launcher.server_pid == server_pid


@pytest.mark.usefixtures("quick_to_judge")
def test_a_server_that_hangs_in_an_import_is_killed_and_says_so(tmp_path: Path) -> None:
    launcher = ForkLauncher(
        scratch=tmp_path, on_exit=lambda _: None, entry=STAND_IN, preload=("signal:pause",)
    )
    try:
        with pytest.raises(LaunchError, match="ended with -9"):
            launcher.wait_ready(20)
        with pytest.raises(LaunchError, match="ended with -9"):
            launcher.launch([make_launch(tmp_path)])
    finally:
        launcher.close()


# ---- one that lacks something --------------------------------------------------------------------


def test_a_rank_that_cannot_be_forked_is_told_with_its_cause_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_fork)
    launch = make_launch(tmp_path / "att_1")
    requests, writer = os.pipe()
    reader, reports = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(json.dumps({"launch": launch.to_json()}).encode() + b"\n")
    ForkServer(entry=lambda _: None, requests_fd=requests, reports_fd=reports).serve()
    os.close(reports)
    with os.fdopen(reader) as file:
        told = [json.loads(line) for line in file]
    os.close(requests)
    assert told == [{"exited": os.EX_OSERR, "attempt_id": "att_1", "rank": 0}]
    assert "cannot start rank 0 of att_1: [Errno 11]" in launch.log_path.read_text()


def test_a_server_without_file_descriptors_outlives_that(
    launcher: ForkLauncher, tmp_path: Path, exits: list[Exited]
) -> None:
    launcher.launch([make_launch(tmp_path / "a")])
    stays = read_note(tmp_path / "a")["pid"]
    assert launcher.server_pid is not None
    used = len(os.listdir(f"/proc/{launcher.server_pid}/fd"))
    limits = resource.prlimit(launcher.server_pid, resource.RLIMIT_NOFILE)
    resource.prlimit(launcher.server_pid, resource.RLIMIT_NOFILE, (used, limits[1]))
    launcher.launch([make_launch(tmp_path / "b", attempt_id="att_2")])
    wait_until(lambda: bool(exits))
    assert exits == [Exited(attempt_id="att_2", rank=0, code=os.EX_OSERR)]
    resource.prlimit(launcher.server_pid, resource.RLIMIT_NOFILE, limits)
    launcher.launch([make_launch(tmp_path / "c", attempt_id="att_3")])
    assert is_alive(read_note(tmp_path / "c")["pid"])
    assert is_alive(stays)


def test_fork_takes_milliseconds(launcher: ForkLauncher, tmp_path: Path) -> None:
    asked_at = time.time()
    launcher.launch([make_launch(tmp_path)])
    assert read_note(tmp_path)["at"] - asked_at < 0.5
