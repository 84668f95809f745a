"""``roadless up`` with small real processes in the place of Ray, service and runner."""

import fcntl
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from roadless.service.cli import marked, up
from roadless.service.cli.child import Child
from roadless.service.cli.home_lock import HomeTaken, held
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
        print(json.dumps({"RAY_ADDRESS": f"127.0.0.1:{os.getpid()}"}), flush=True)
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


#: What one process needs, and no other may see.
OPERATORS = {
    "ROADLESS_SECRETS_KEY": "of the service",
    "ROADLESS_TOKEN": "of a user",
    "ROADLESS_RUNNER_TOKEN": "of another runner",
    "RAY_AUTH_TOKEN": "of another cluster",
}


class Running:
    """The driver process, and what it and its children said."""

    def __init__(
        self, folder: Path, *, host: str, ready_seconds: float, stdout: int | None
    ) -> None:
        """``stdout``: where its lines go, such as a terminal of its own; None: a file."""
        self.folder = folder
        (folder / "driver.py").write_text(textwrap.dedent(DRIVER))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ROADLESS_", "RAY_"))}
        self.output = folder / "output"
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "driver.py", str(folder / "home"), host, str(ready_seconds)],
                cwd=folder,
                env=kept | {"PYTHONPATH": str(folder)} | OPERATORS,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=subprocess.STDOUT,
                start_new_session=stdout is not None,
                preexec_fn=partial(take_terminal, stdout),
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
        *,
        host: str = "127.0.0.1",
        ready_seconds: float = up.READY_SECONDS,
        stdout: int | None = None,
        **changed: str,
    ) -> Running:
        for name, text in (FAKES | changed).items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        started.append(Running(tmp_path, host=host, ready_seconds=ready_seconds, stdout=stdout))
        return started[-1]

    starting.folder = tmp_path
    yield starting
    for running in started:
        running.process.kill()
        running.process.wait()
        for name in ("ray", "service", "runner"):
            for note in running.notes(name):
                if is_alive(note["pid"]):
                    os.kill(note["pid"], signal.SIGKILL)


def take_terminal(stdout: int | None) -> None:
    """Have the kernel tell the new session when its terminal has gone."""
    if stdout is not None and os.isatty(stdout):
        fcntl.ioctl(stdout, termios.TIOCSCTTY, 0)


def is_alive(pid: int) -> bool:
    """Whether it exists and is not merely waiting to be reaped by its new parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(running: Running, *names: str) -> None:
    give_up_at = time.monotonic() + 20
    while any(is_alive(note["pid"]) for name in names for note in running.notes(name)):
        assert time.monotonic() < give_up_at, "something outlived it"
        time.sleep(0.02)


PARTS = ("ray", "service", "runner")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_all_come_up_in_order_and_go_down_in_reverse(start, number):
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    running.wait_for_note("runner")
    running.process.send_signal(number)
    assert running.process.wait(20) == 0
    names = ("ray", "service", "runner", "runner left", "service left", "ray left")
    times = [running.wait_for_note(name)["at"] for name in names]
    assert times == sorted(times)
    wait_until_gone(running, *PARTS)


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
        "ROADLESS_STACK": f"service@{home}",
        **OPERATORS,
    }
    assert runner["env"] == {
        "ROADLESS_HOME": home,
        "ROADLESS_URL": f"http://127.0.0.1:{port}",
        "ROADLESS_RUNNER_TOKEN_FILE": f"{home}/runner.token",
        "ROADLESS_SCRATCH": f"{home}/scratch",
        "ROADLESS_DATA_CACHE": f"{home}/data-cache",
        "ROADLESS_STACK": f"runner@{home}",
        "ROADLESS_CLUSTER": runner["env"]["ROADLESS_CLUSTER"],
        "RAY_ADDRESS": f"127.0.0.1:{ray['pid']}",
    }
    assert ray["env"] == {"ROADLESS_STACK": f"Ray head@{home}"}


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


def test_a_dead_ray_head_is_replaced_and_the_runner_with_it(start):
    """What the dead one has started, and nobody can find below it, ends before."""
    running = start(
        fake_ray=FAKES["fake_ray"].replace(
            'note("ray");',
            "import subprocess; below = subprocess.Popen(['sleep', '600']); "
            "open(f'below-{below.pid}', 'w'); note('ray');",
        )
    )
    running.wait_for("Ctrl-C stops everything.")
    first = running.wait_for_note("ray")["pid"]
    old_runner = running.wait_for_note("runner")["pid"]
    (below,) = running.folder.glob("below-*")
    os.kill(first, signal.SIGKILL)
    second = running.wait_for_note("ray", times=2)["pid"]
    runner = running.wait_for_note("runner", times=2)
    assert runner["env"]["RAY_ADDRESS"] == f"127.0.0.1:{second}"
    assert not is_alive(int(below.name.removeprefix("below-")))
    assert not is_alive(old_runner)
    assert len(running.notes("service")) == 1
    assert "Ray head exited with code -9" in running.output.read_text()


def test_a_ray_head_that_keeps_dying_ends_the_whole(start):
    running = start(
        fake_ray=FAKES["fake_ray"].replace("while True: time.sleep(1)", "time.sleep(0.5)")
    )
    assert running.process.wait(60) == 1
    assert len(running.notes("ray")) == 6
    assert "it failed more than 5 times" in running.output.read_text()
    wait_until_gone(running, *PARTS)


def test_a_service_that_does_not_start_is_named_with_its_log(start):
    running = start(fake_service="raise SystemExit('the disk is full')")
    assert running.process.wait(20) == 1
    said = running.output.read_text()
    log = running.folder / "home" / "logs" / "service.log"
    assert f"UpError: the service exited with code 1: the disk is full; see {log}\n" in said
    assert running.notes("runner") == []
    assert not is_alive(running.notes("ray")[0]["pid"])


def test_a_busy_port_is_refused_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        plan = up.Plan(home=tmp_path / "home", port=port, num_cpus=None)
        with pytest.raises(up.UpError, match=f"expected port {port} to be free"):
            up.run(plan, say=lambda line: None)
    assert list((tmp_path / "home" / "logs").iterdir()) == []


def a_child(folder: Path, code: str) -> Child:
    command = [sys.executable, "-c", code]
    return Child("stubborn", command, log=folder / "log", environment=lambda: os.environ)


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.77", "host.invalid"])
def test_an_address_that_is_none_of_this_machine_is_told(tmp_path, host):
    plan = up.Plan(home=tmp_path / "home", port=0, host=host, num_cpus=None)
    with pytest.raises(up.UpError, match=f"expected ROADLESS_HOST .* saw {host}: "):
        up.run(plan, say=lambda line: None)


@pytest.mark.parametrize(("seconds", "is_urgent"), [(0.2, False), (600, True)])
def test_a_process_that_does_not_hear_is_killed_in_time_or_once_that_is_urgent(
    tmp_path, seconds, is_urgent
):
    child = a_child(
        tmp_path,
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(60)\n",
    )
    child.start()
    while not child.said().strip():
        time.sleep(0.02)
    child.stop(seconds=seconds, is_urgent=lambda: is_urgent)
    assert child.exit_code() == -signal.SIGKILL


# ---- how it ends ---------------------------------------------------------------------------------

DEAF = {
    f"fake_{name}": FAKES[f"fake_{name}"].replace(
        f'leave("{name}")', "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    )
    for name in PARTS
}


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGQUIT,)])
def test_a_second_ctrl_c_ends_at_once_what_would_not_end(start, numbers):
    running = start(**DEAF)
    running.wait_for("Ctrl-C stops everything.")
    running.wait_for_note("runner")
    for number in numbers:
        running.process.send_signal(number)
        if number is signal.SIGINT:
            running.wait_for("stopping the runner")
    assert running.process.wait(10) == 0  # one that would not end is waited for twice as long
    wait_until_gone(running, *PARTS)


def test_what_a_part_leaves_behind_at_its_end_ends_too(start):
    running = start(
        fake_runner=FAKES["fake_runner"].replace(
            'leave("runner")',
            "import subprocess; below = subprocess.Popen(['setsid', 'sleep', '600']); "
            "leave('runner'); open(f'below-{below.pid}', 'w')",
        )
    )
    running.wait_for_note("runner")
    give_up_at = time.monotonic() + 20
    while not (below := list(running.folder.glob("below-*"))):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0
    assert not is_alive(int(below[0].name.removeprefix("below-")))


@pytest.mark.parametrize("stage", ["ray", "service"])
def test_ctrl_c_while_something_starts_leaves_nothing(start, stage):
    ready = {"ray": 'print("a warning', "service": "HTTPServer(("}[stage]
    silent = FAKES[f"fake_{stage}"].replace(ready, f"time.sleep(600); {ready}")
    running = start(**{f"fake_{stage}": silent})
    running.wait_for_note(stage)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 0
    assert running.notes("runner") == []
    wait_until_gone(running, *PARTS)


def test_everything_ends_with_the_terminal(start):
    """Neither the hang-up nor the lines that nobody can read any more keep anything from ending."""
    ours, theirs = pty.openpty()
    running = start(stdout=theirs)
    os.close(theirs)
    running.wait_for_note("runner")
    os.close(ours)
    assert running.process.wait(30) == 0
    wait_until_gone(running, *PARTS)


def test_everything_ends_though_the_reader_of_its_lines_has_left(start):
    reader, writer = os.pipe()
    running = start(stdout=writer)
    os.close(writer)
    running.wait_for_note("ray")
    os.close(reader)
    running.wait_for_note("runner")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    wait_until_gone(running, *PARTS)


def test_what_nohup_keeps_going_is_not_ended_by_a_hang_up():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with up._signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_everything_ends_with_one_that_is_killed(start):
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    running.wait_for_note("runner")
    running.process.kill()
    wait_until_gone(running, *PARTS)


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


def test_what_a_killed_one_has_left_is_ended_by_the_next(start):
    """Told by their mark or by that of what they are below: others of the same name stay."""
    (start.folder / "disk").mkdir()
    (start.folder / "home").symlink_to("disk")
    left, other = (
        subprocess.Popen(
            ["sh", "-c", "env -i sleep 600 & echo $!; wait"],
            env=os.environ | marked.mark("Ray head", home),
            stdout=subprocess.PIPE,
        )
        for home in (start.folder / "disk", start.folder / "other")
    )
    below_left, below_other = (int(process.stdout.readline()) for process in (left, other))
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    assert left.wait(1) == -signal.SIGKILL
    said = running.output.read_text().partition("had left running: ")[2].partition("\n")[0]
    assert set(said.split(", ")) == {f"Ray head ({pid})" for pid in (left.pid, below_left)}
    assert not is_alive(below_left)
    assert other.poll() is None
    os.kill(below_other, signal.SIGKILL)
    other.communicate()
    left.stdout.close()


def test_one_that_was_killed_is_not_named_to_the_third(tmp_path):
    """While the second one starts, the file must not say what the first one has."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "up.lock").write_text('{"pid": 7, "url": "http://x"}')
    says = pytest.raises(HomeTaken, match="saw one that starts or stops")
    with held(tmp_path / "home"), says, held(tmp_path / "home"):
        pass


def test_a_home_has_one_lock_by_whatever_links_it_is_named(start, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "home")
    running = start()
    running.wait_for("Ctrl-C stops everything.")
    plan = up.Plan(home=tmp_path / "link", port=0, num_cpus=None)
    with pytest.raises(up.UpError, match=f"process {running.process.pid} at"):
        up.run(plan, say=lambda line: None)


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
        "import os, sys; from pathlib import Path; from roadless.service.cli.child import Child\n"
        "command = [sys.executable, '-P', '-m', 'a_probe']\n"
        "child = Child('probe', command, log=Path('log'), environment=lambda: os.environ)\n"
        "child.start(); child._process.wait(); print(child.exit_code(), child.said())\n"
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
