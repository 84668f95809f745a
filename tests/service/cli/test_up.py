"""``roadless up`` with small real processes in the place of Ray, service and runner."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roadless.service.cli import up

DRIVER = """
    import sys
    from pathlib import Path
    from roadless.service.cli import up

    modules = up.Modules(ray="fake_ray", service="fake_service", runner="fake_runner")
    plan = up.Plan(home=Path(sys.argv[1]), port=0, num_cpus=2, modules=modules)
    try:
        up.run(plan, say=lambda line: print(line, flush=True))
    except up.UpError as error:
        print(f"UpError: {error}", flush=True)
        raise SystemExit(1)
"""

NOTE = """
    import os, sys, time, json, signal
    def note(name):
        keys = ("ROADLESS_", "RAY_")
        env = {k: v for k, v in os.environ.items() if k.startswith(keys)}
        with open("notes.jsonl", "a") as f:
            f.write(json.dumps({"name": name, "pid": os.getpid(), "env": env, "argv": sys.argv[1:],
                                "at": time.monotonic()}) + "\\n")
    def leave(name):
        def handler(*_):
            note(name + " left")
            os._exit(0)
        signal.signal(signal.SIGTERM, handler)
"""

FAKES = {
    "fakes_note": NOTE,
    "fake_ray": """
        from fakes_note import *
        note("ray"); leave("ray")
        print("a warning of some library", flush=True)
        print(json.dumps({"address": "127.0.0.1:6379", "auth_token_path": "/t"}), flush=True)
        while True: time.sleep(1)
    """,
    "fake_service": """
        from fakes_note import *
        from http.server import BaseHTTPRequestHandler, HTTPServer
        note("service"); leave("service")
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/readyz" else 404)
                self.end_headers()
        HTTPServer(("127.0.0.1", int(os.environ["ROADLESS_PORT"])), Handler).serve_forever()
    """,
    "fake_runner": """
        from fakes_note import *
        note("runner"); leave("runner")
        while True: time.sleep(1)
    """,
}


class Running:
    """The driver process, and what it and its children said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "driver.py").write_text(textwrap.dedent(DRIVER))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ROADLESS_", "RAY_"))}
        self.output = folder / "output"
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "driver.py", str(folder / "home")],
                cwd=folder,
                env=kept | {"PYTHONPATH": str(folder)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def notes(self, name: str) -> list[dict]:
        path = self.folder / "notes.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for note in map(json.loads, lines) if note["name"] == name]

    def wait_for(self, text: str, *, times: int = 1) -> None:
        give_up_at = time.monotonic() + 20
        while self.output.read_text().count(text) < times:
            assert time.monotonic() < give_up_at, self.output.read_text()
            assert self.process.poll() is None or text in self.output.read_text()
            time.sleep(0.02)

    def wait_for_note(self, name: str, *, times: int = 1) -> dict:
        give_up_at = time.monotonic() + 20
        while len(self.notes(name)) < times:
            assert time.monotonic() < give_up_at, self.output.read_text()
            time.sleep(0.02)
        return self.notes(name)[-1]


@pytest.fixture
def start(tmp_path) -> Iterator:
    started: list[Running] = []

    def starting(**changed: str) -> Running:
        for name, text in (FAKES | changed).items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        started.append(Running(tmp_path))
        return started[-1]

    yield starting
    for running in started:
        running.process.kill()
        running.process.wait()
        for name in ("ray", "service", "runner"):
            for note in running.notes(name):
                if is_alive(note["pid"]):
                    os.kill(note["pid"], signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_come_up_in_order_and_go_down_in_reverse(start, number):
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    running.wait_for_note("runner")
    running.process.send_signal(number)
    assert running.process.wait(20) == 0
    names = ("ray", "service", "runner", "runner left", "service left", "ray left")
    times = [running.wait_for_note(name)["at"] for name in names]
    assert times == sorted(times)
    assert not any(is_alive(running.notes(name)[0]["pid"]) for name in names)


def test_each_process_is_told_what_it_needs_and_no_more(start):
    running = start()
    runner = running.wait_for_note("runner")
    service, ray = running.wait_for_note("service"), running.wait_for_note("ray")
    home = str(running.folder / "home")
    assert ray["argv"] == ["--home", home, "--num-cpus", "2"]
    port = service["env"]["ROADLESS_PORT"]
    assert service["env"] == {
        "ROADLESS_HOME": home,
        "ROADLESS_HOST": "127.0.0.1",
        "ROADLESS_PORT": port,
    }
    assert runner["env"] == {
        "ROADLESS_HOME": home,
        "ROADLESS_URL": f"http://127.0.0.1:{port}",
        "ROADLESS_RUNNER_TOKEN_FILE": f"{home}/runner.token",
        "ROADLESS_SCRATCH": f"{home}/scratch",
        "ROADLESS_DATA_CACHE": f"{home}/data-cache",
        "RAY_ADDRESS": "127.0.0.1:6379",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/t",
    }


@pytest.mark.parametrize("name", ["service", "runner"])
def test_a_killed_service_or_runner_is_started_again(start, name):
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    os.kill(running.wait_for_note(name)["pid"], signal.SIGKILL)
    running.wait_for(f"restarting the {name}")
    assert running.wait_for_note(name, times=2)["env"] == running.notes(name)[0]["env"]
    assert f"{name} exited with code -9" in running.output.read_text()
    assert len(running.notes("ray")) == 1


def test_a_runner_that_keeps_dying_ends_the_whole_with_the_end_of_its_log(start):
    running = start(
        fake_runner="""
        from fakes_note import *
        note("runner")
        raise SystemExit("no such cluster")
    """
    )
    assert running.process.wait(60) == 1
    assert len(running.notes("runner")) == 6
    assert "no such cluster" in running.output.read_text().split("UpError:")[1]
    assert not is_alive(running.notes("ray")[0]["pid"])
    assert not is_alive(running.notes("service")[0]["pid"])


def test_the_loss_of_the_ray_head_ends_the_whole(start):
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    os.kill(running.wait_for_note("ray")["pid"], signal.SIGKILL)
    assert running.process.wait(20) == 1
    assert "UpError: Ray head exited with code -9" in running.output.read_text()
    assert not is_alive(running.wait_for_note("runner")["pid"])


def test_a_service_that_does_not_start_is_named_with_its_log(start):
    running = start(fake_service="raise SystemExit('the disk is full')")
    assert running.process.wait(20) == 1
    said = running.output.read_text()
    assert "UpError: service exited with code 1" in said
    assert "the disk is full" in said
    assert running.notes("runner") == []
    assert not is_alive(running.notes("ray")[0]["pid"])


def test_a_busy_port_is_refused_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        plan = up.Plan(home=tmp_path / "home", port=port, num_cpus=None)
        with pytest.raises(up.UpError, match=f"expected port {port} to be free"):
            up.run(plan, say=lambda line: None)
    assert not (tmp_path / "home").exists()


def test_a_process_that_does_not_hear_is_killed_with_its_group(tmp_path):
    stubborn = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "below = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(below.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = up.Child("stubborn", [sys.executable, "-c", stubborn], log=tmp_path / "log", env={})
    while not child.said().strip():
        time.sleep(0.02)
    child.stop(seconds=0.2)
    assert child.exit_code() == -signal.SIGKILL
    below = int(child.said())
    give_up_at = time.monotonic() + 5
    while is_running(below):
        assert time.monotonic() < give_up_at, "the process below outlived its group"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether it exists and is not merely waiting to be reaped by its new parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
