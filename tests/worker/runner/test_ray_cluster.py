"""A private Ray: protected, and gone without a trace; a remote one without a token is refused."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from worker_drills import is_alive, wait_until

from roadless.worker.runner.ray_cluster import (
    Head,
    NoCluster,
    RayStartError,
    UnauthenticatedRay,
    _new_folder,
    require_authentication,
    require_listening,
    start_head,
    stop_trees,
)


def first_words(environment: dict[str, str], *, until: str) -> str:
    """What a driver says when it connects, up to the line with ``until``."""
    program = "import ray; ray.init(log_to_driver=False); print('connected')"
    driver = subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert driver.stdout is not None
    heard = ""
    for line in driver.stdout:
        heard += line
        if until in line:
            break
    driver.kill()
    driver.communicate()
    return heard


def test_head_lets_in_who_has_the_token_and_nobody_else(ray_head: Head) -> None:
    assert stat.S_IMODE(Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).stat().st_mode) == 0o600
    assert "connected" in first_words(ray_head.environment, until="connected")
    without = {"RAY_ADDRESS": ray_head.address, "RAY_AUTH_MODE": "disabled"}
    assert "InvalidAuthToken" in first_words(without, until="InvalidAuthToken")


def test_stopped_head_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    head = start_head(tmp_path, num_cpus=1)
    folder = head.folder
    assert _processes_below(folder)
    head.stop()
    assert _processes_below(folder) == []
    assert not folder.exists()


def listening(root: int) -> set[str]:
    """The addresses at which processes below this one listen, or take datagrams."""
    tree = psutil.Process(root).children(recursive=True)
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in tree
        for connection in process.net_connections()
        if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
    }


@pytest.fixture
def head_process(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A head that is up, as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "roadless.worker.head", "--home", str(tmp_path), "--num-cpus", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["RAY_ADDRESS"].startswith("127.0.0.1:")
    yield process
    process.terminate()
    process.communicate()


def test_a_head_that_loses_a_part_ends_with_everything_it_has_started(
    head_process: "subprocess.Popen[str]",
) -> None:
    """Without its GCS, Ray's agents would go on for a while; a dead raylet takes them along."""
    assert listening(head_process.pid) == {"127.0.0.1"}
    below = psutil.Process(head_process.pid).children(recursive=True)
    next(process for process in below if process.name() == "gcs_server").kill()
    _, said = head_process.communicate(timeout=60)
    assert head_process.returncode == 1
    assert "expected all of Ray's processes to run, saw: gcs_server [exit code=-9]" in said
    assert [process for process in below if is_alive(process.pid)] == []


def test_a_killed_head_leaves_no_process(head_process: "subprocess.Popen[str]") -> None:
    below = psutil.Process(head_process.pid).children(recursive=True)
    head_process.kill()
    wait_until(lambda: not any(is_alive(process.pid) for process in below))


def test_the_folder_of_a_killed_head_is_removed_by_the_next_and_no_other(tmp_path: Path) -> None:
    left = Path(tempfile.mkdtemp(prefix="roadless-", dir="/tmp"))
    (left / "log").touch()
    (tmp_path / "ray.folder").write_text(str(left))
    first = _new_folder(tmp_path)
    assert not left.exists()
    assert first.is_dir()
    (tmp_path / "ray.folder").write_text(str(tmp_path))
    second = _new_folder(tmp_path)
    assert tmp_path.is_dir()
    for folder in (first, second):
        folder.rmdir()


def test_head_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(RayStartError, match="must be nonnegative"):
        start_head(tmp_path, num_cpus=-1)


def test_tree_is_ended_though_its_members_refuse_and_sit_in_other_sessions() -> None:
    deaf = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$; sleep 600; sleep 600' & wait; wait"
    root = subprocess.Popen(["sh", "-c", deaf], stdout=subprocess.PIPE, text=True)
    assert root.stdout is not None
    grandchild = int(root.stdout.readline())
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("roadless.worker.runner.ray_cluster._STOP_SECONDS", 0.3)
        stop_trees([root.pid])
    assert time.monotonic() - started < 5
    assert root.wait(1) == -9
    wait_until(lambda: not is_alive(grandchild))


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_local_ray_needs_no_token(address: str) -> None:
    require_authentication(address, {})


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        require_listening(address)
    with pytest.raises(NoCluster, match=f"RAY_ADDRESS, {address}; saw: .*Connection refused"):
        require_listening(address)


def test_remote_ray_without_a_token_is_refused_unless_waived() -> None:
    with pytest.raises(UnauthenticatedRay, match=r"RAY_AUTH_MODE=token.*198\.51\.100\.7:6379"):
        require_authentication("198.51.100.7:6379", {})
    require_authentication("198.51.100.7:6379", {"RAY_AUTH_MODE": "token"})
    require_authentication("198.51.100.7:6379", {}, is_waived=True)


def _processes_below(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found
