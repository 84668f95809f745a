"""``roadless up`` with small real processes in the place of Ray, service and runner."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from roadless.service.cli import up
from roadless.service.cli.home_lock import require_free
from roadless.service.cli.main import app

DRIVER = """
    import sys
    from pathlib import Path
    from roadless.service.cli import up

    modules = up.Modules(ray="fake_ray", service="fake_service", runner="fake_runner")
    plan = up.Plan(
        home=Path(sys.argv[1]), port=0, host=sys.argv[2], num_cpus=2, modules=modules
    )
    up.READY_SECONDS = float(sys.argv[3])
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

    def __init__(self, folder: Path, *, host: str, ready_seconds: float) -> None:
        self.folder = folder
        (folder / "driver.py").write_text(textwrap.dedent(DRIVER))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ROADLESS_", "RAY_"))}
        self.output = folder / "output"
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "driver.py", str(folder / "home"), host, str(ready_seconds)],
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

    def starting(
        *, host: str = "127.0.0.1", ready_seconds: float = up.READY_SECONDS, **changed: str
    ) -> Running:
        for name, text in (FAKES | changed).items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        started.append(Running(tmp_path, host=host, ready_seconds=ready_seconds))
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


# ---- one home, one roadless up -------------------------------------------------------------------


def test_a_second_one_on_the_same_home_hears_who_is_there(start):
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    port = running.wait_for_note("service")["env"]["ROADLESS_PORT"]
    plan = up.Plan(home=running.folder / "home", port=int(port), num_cpus=None)
    with pytest.raises(up.UpError) as refused:
        up.run(plan, say=lambda line: None)
    said = str(refused.value)
    assert f"process {running.process.pid} at http://127.0.0.1:{port}" in said
    assert "--home" in said
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0
    assert len(running.notes("ray")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_one_starts_once_it_has_gone_however_it_went(start, number):
    first = start()
    first.wait_for("Ctrl-C stops everything.")
    first.process.send_signal(number)
    first.process.wait(20)
    second = start()
    second.wait_for("Ctrl-C stops everything.")


def test_what_a_killed_one_has_left_running_is_named_with_how_to_end_it(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    ours = "import time; print('roadless.', flush=True); time.sleep(60)"
    left = subprocess.Popen([sys.executable, "-c", ours], stdout=subprocess.PIPE)
    left.stdout.readline()
    children = {"service": left.pid, "runner": 2**22 + 1}
    (home / "up.lock").write_text(json.dumps({"pid": 7, "url": "http://x", "children": children}))
    plan = up.Plan(home=home, port=0, num_cpus=None)
    said = f"process 7 has gone and left running: service .{left.pid}.; .* kill {left.pid}$"
    with pytest.raises(up.UpError, match=said):
        up.run(plan, say=lambda line: None)
    left.kill()
    left.communicate()
    require_free(home)


def test_the_processes_that_run_are_recorded_after_restarts_too(start):
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    os.kill(running.wait_for_note("runner")["pid"], signal.SIGKILL)
    pid = running.wait_for_note("runner", times=2)["pid"]
    give_up_at = time.monotonic() + 20
    while recorded(running)["children"].get("runner") != pid:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert recorded(running)["pid"] == running.process.pid
    assert set(recorded(running)["children"]) == {"Ray head", "service", "runner"}
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0
    assert (running.folder / "home" / "up.lock").read_text() == ""


def recorded(running):
    """What the lock file says; nothing while it is being written."""
    text = (running.folder / "home" / "up.lock").read_text()
    try:
        return json.loads(text)
    except ValueError:
        return {"pid": None, "children": {}}


def test_a_port_that_another_service_has_is_told_with_the_way_out(tmp_path):
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"ok"}')

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        plan = up.Plan(home=tmp_path / "home", port=server.server_port, num_cpus=None)
        with pytest.raises(up.UpError, match="answers as a Roadless service") as refused:
            up.run(plan, say=lambda line: None)
        server.shutdown()
    assert "--port or ROADLESS_PORT" in str(refused.value)


def test_a_home_that_cannot_be_written_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("no folder")
    plan = up.Plan(home=tmp_path / "file" / "home", port=0, num_cpus=None)
    with pytest.raises(up.UpError, match="choose another with --home"):
        up.run(plan, say=lambda line: None)


def test_a_service_that_does_not_get_ready_is_told_with_what_it_answers(start):
    unready = """
        from fakes_note import *
        from http.server import BaseHTTPRequestHandler, HTTPServer
        note("service"); leave("service")
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(503)
                self.end_headers()
                self.wfile.write(b'{"detail": "no disk space left at the service"}')
        HTTPServer(("127.0.0.1", int(os.environ["ROADLESS_PORT"])), Handler).serve_forever()
    """
    running = start(fake_service=unready, ready_seconds=2)
    assert running.process.wait(30) == 1
    said = running.output.read_text()
    assert "expected the service to be ready within 2 s, saw the answer 503: no disk space" in said
    assert not is_alive(running.notes("ray")[0]["pid"])


# ---- whose modules, whose files ------------------------------------------------------------------

#: Modules of the standard library that a user's folder may well have files named like.
USERS_MODULES = ("platform", "queue", "select", "random", "types", "tokenize", "statistics")


def test_modules_of_the_users_folder_are_not_taken_for_pythons(tmp_path):
    """Neither by what is started nor by what that starts."""
    for name in USERS_MODULES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user\\'s own')\n")
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "a_probe.py").write_text(
        "import subprocess, sys, os\n"
        f"import {', '.join(USERS_MODULES)}\n"
        f"below = 'import {', '.join(USERS_MODULES)}; print(\"below\")'\n"
        "subprocess.run([sys.executable, '-c', below], check=True)\n"
        "subprocess.run([sys.executable, '-m', 'a_below'], check=True)\n"
    )
    (tmp_path / "probe" / "a_below.py").write_text(f"import {', '.join(USERS_MODULES)}\n")
    code = (
        "import sys; from pathlib import Path; from roadless.service.cli import up\n"
        "command = [sys.executable, '-P', '-m', 'a_probe']\n"
        "child = up.Child('probe', command, log=Path('log'), env={})\n"
        "child._process.wait(); print(child.exit_code(), child.said())\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "probe")}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["0", "below"], done.stdout + done.stderr


def test_what_is_started_is_started_on_a_safe_path(start):
    running = start(
        fake_runner="""
        from fakes_note import *
        os.environ["ROADLESS_SAFE"] = str(sys.flags.safe_path)
        note("runner"); leave("runner")
        while True: time.sleep(1)
    """
    )
    assert running.wait_for_note("runner")["env"]["ROADLESS_SAFE"] == "True"


def test_the_home_and_what_is_in_it_are_their_users_alone(start):
    running = start(
        fake_service=FAKES["fake_service"].replace(
            'note("service")',
            "import pathlib; home = pathlib.Path(os.environ['ROADLESS_HOME']); "
            "(home / 'a file').touch(); (home / 'a folder').mkdir(); note('service')",
        )
    )
    running.wait_for("Ctrl-C stops everything.")
    running.wait_for_note("runner")
    home = running.folder / "home"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")}
    assert {path.name for path in modes} >= {"a file", "a folder", "logs", "runner.log", "up.lock"}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes


def test_the_address_to_listen_on_reaches_the_service(start):
    running = start(host="0.0.0.0")
    running.wait_for("Ctrl-C stops everything.")
    service, runner = (
        running.wait_for_note("service")["env"],
        running.wait_for_note("runner")["env"],
    )
    assert service["ROADLESS_HOST"] == "0.0.0.0"
    assert runner["ROADLESS_URL"] == f"http://127.0.0.1:{service['ROADLESS_PORT']}"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8700"),
        ("0.0.0.0", "http://127.0.0.1:8700"),
        ("::1", "http://[::1]:8700"),
        ("node-1", "http://node-1:8700"),
    ],
)
def test_where_the_service_answers_follows_from_where_it_listens(tmp_path, host, url):
    assert up.Plan(home=tmp_path, port=8700, host=host, num_cpus=None).url == url


def test_the_port_is_that_of_the_variable_or_of_the_option(monkeypatch, tmp_path):
    plans = []
    monkeypatch.setattr(up, "run", lambda plan, say: plans.append(plan))
    monkeypatch.setenv("ROADLESS_PORT", "8765")
    monkeypatch.setenv("ROADLESS_HOST", "127.0.0.2")
    for arguments in ([], ["--port", "8766"]):
        runner = CliRunner().invoke(app, ["up", "--home", str(tmp_path), *arguments])
        assert runner.exit_code == 0, runner.output
    assert [(plan.port, plan.host) for plan in plans] == [(8765, "127.0.0.2"), (8766, "127.0.0.2")]
    monkeypatch.setenv("ROADLESS_PORT", "many")
    assert CliRunner().invoke(app, ["up"]).exit_code == 2
