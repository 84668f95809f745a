"""From a launch with a wheel to a rank in its environment: as real processes, over real HTTP."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from stack import rank_pids
from wheel_maker import make_wheel
from worker_drills import is_alive, make_launch, wait_until

from roadless.worker.agent.launcher import Exited
from roadless.worker.agent.node_launcher import WHEEL_ENTRY
from roadless.worker.agent.spawn_launcher import SpawnLauncher
from roadless.worker.rank_launch import RankLaunch, WheelFile


@dataclass
class Shop:
    """A service that gives out one wheel, and hears why attempts end."""

    content: bytes
    url: str = ""
    status: int = 200
    ended: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(make_wheel(tmp_path).read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Authorization"] == "Bearer attempt-secret"
            shop.asked.append(self.path)
            is_wheel = self.path == "/internal/v1/attempts/att_1/wheel"
            problem = json.dumps({"type": "about:blank", "detail": "not here"}).encode()
            is_given = is_wheel and shop.status == 200
            self._answer(*((200, shop.content) if is_given else (shop.status, problem)))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/ended"):
                shop.ended.append(json.loads(body))
            self._answer(204, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            if status >= 400:
                self.send_header("Content-Type", "application/problem+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shop.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield shop
    server.shutdown()
    server.server_close()


def launch_of(shop: Shop, scratch: Path, *, sha256: str = "") -> RankLaunch:
    wheel = WheelFile(
        file_name="our_models-1.0-py3-none-any.whl",
        sha256=sha256 or hashlib.sha256(shop.content).hexdigest(),
    )
    return make_launch(scratch / "att_1", wheel=wheel, service_url=shop.url)


def end_of(launch: RankLaunch) -> Exited:
    exits: list[Exited] = []
    launcher = SpawnLauncher(on_exit=exits.append, entry=WHEEL_ENTRY, preload=())
    try:
        launcher.launch([launch])
        wait_until(lambda: bool(exits), seconds=60)
    finally:
        launcher.close()
    return exits[0]


def test_the_rank_is_the_same_process_in_the_environment_of_its_wheel(
    shop: Shop, tmp_path: Path
) -> None:
    """As the launcher has made it: in its session, with its log, and with its secrets to itself."""
    launch = launch_of(shop, tmp_path)
    exits: list[Exited] = []
    launcher = SpawnLauncher(on_exit=exits.append, entry=WHEEL_ENTRY, preload=())
    try:
        launcher.launch([launch])
        wait_until(lambda: "/internal/v1/attempts/att_1" in shop.asked or bool(exits), seconds=60)
        assert exits == []
        (pid,) = rank_pids(str(launch.log_path))
        process = Path(f"/proc/{pid}")
        command = (process / "cmdline").read_text().split("\0")
        assert Path(command[0]).is_relative_to(launch.environments)
        assert command[command.index("--parent") + 1] == str(os.getpid())
        assert (process / "oom_score_adj").read_text().strip() == "1000"
        assert os.readlink(process / "fd" / "0") == "/dev/null"
        told = (process / "cmdline").read_text() + (process / "environ").read_text()
        assert "attempt-secret" not in told + launch.log_path.read_text()
    finally:
        launcher.close()
    assert [exited.code for exited in exits] == [-9]
    assert not is_alive(pid)
    assert shop.asked[0] == "/internal/v1/attempts/att_1/wheel"


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        (
            "other bytes",
            "model_unreadable",
            "expected our_models-1.0-py3-none-any.whl with SHA-256",
        ),
        ("gone", "model_not_found", "expected the wheel our_models-1.0-py3-none-any.whl, saw"),
        ("broken", "model_invalid", "expected pip to install"),
    ],
)
def test_what_is_wrong_with_a_wheel_ends_the_attempt_with_its_reason(
    shop: Shop, tmp_path: Path, fault: str, reason: str, words: str
) -> None:
    """The rank leaves without an error: the service knows all there is to know."""
    launch = launch_of(shop, tmp_path)
    match fault:
        case "other bytes":
            shop.content += b"!"
        case "gone":
            shop.status = 404
        case "broken":
            dist_info = {"WHEEL": "Wheel-Version: 9.0\nTag: py3-none-any\n"}
            shop.content = make_wheel(tmp_path, dist_info=dist_info).read_bytes()
            launch = launch_of(shop, tmp_path)
    assert end_of(launch).code == 0
    (ended,) = shop.ended
    assert ended["reason"] == reason
    assert words in ended["message"]
    assert not [path for path in launch.environments.iterdir() if path.is_dir()]


def test_an_attempt_that_is_over_is_left_without_a_word(shop: Shop, tmp_path: Path) -> None:
    launch = launch_of(shop, tmp_path)
    shop.status = 401
    assert end_of(launch).code == 0
    assert shop.ended == []


def test_a_fault_of_ours_is_an_end_with_its_trace(shop: Shop, tmp_path: Path) -> None:
    """Here a folder that cannot be made; the agent tells the service what the log says."""
    (tmp_path / "environments").write_text("in the way")
    launch = launch_of(shop, tmp_path)
    assert end_of(launch).code == 70
    assert "FileExistsError" in launch.log_path.read_text()
    assert shop.ended == []
