"""Ways to end ``roadless up``, and starts that cannot work. Nothing may be left, ever."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time

import psutil
import pytest
from pairs import spec
from stack import free_port, wait_for_step, wait_until
from up_stack import UpStack, strays

TRACEBACK = "Traceback (most recent call last)"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_and_the_same_command_again(up, drill, name):
    """Everything ends; the next start continues both jobs."""

    def fault(pair):
        stopped = up.stop(getattr(signal, name))
        ranks = [*pair.ranks(0), *pair.ranks(1)]
        assert not stopped.left
        assert not ranks
        assert not strays(up.home)
        return f"ended after {stopped.seconds:.1f} s, up again after {up.start():.1f} s"

    drill(up, fault)


def test_a_second_stack_on_the_home_is_refused(up, drill):
    """On the same port or another; the first is not disturbed."""

    def fault(_pair):
        for port in (up.port, free_port()):
            said = up.said.read_text()
            second = up.spawn(port=port)
            status = second.wait(60)
            line = up.said.read_text()
            up.said.write_text(said)
            assert status not in (0, None)
            assert str(up.home) in line
            assert TRACEBACK not in line

    assert drill(up, fault).fences == [1, 1]


def test_five_times_ctrl_c(make_up):
    """It ends at once, and what it started ends too."""
    up = make_up()
    with up.client() as client:
        job_id = client.submit(spec("impatient", ranks=2, steps=None)).id
        wait_for_step(client, job_id, 10)
    before = up.processes()
    for _ in range(5):
        with contextlib.suppress(ProcessLookupError):
            up.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    up.process.wait(60)
    _, left = psutil.wait_procs(before, timeout=20)
    assert not left
    wait_until(lambda: not strays(up.home), seconds=20)


def test_a_terminal_that_is_closed(tmp_path):
    """The hang-up reaches ``up`` alone; what it started ends with it."""
    home = tmp_path / "home"
    pid, terminal = pty.fork()
    if pid == 0:
        command = ["-m", "roadless.service.cli", "up", "--home", str(home)]
        options = ["--port", str(free_port()), "--num-cpus", "1"]
        os.execv(sys.executable, [sys.executable, *command, *options])
    said, end = b"", time.monotonic() + 180
    while b"is up at" not in said:
        assert time.monotonic() < end
        said += os.read(terminal, 4096)
    os.close(terminal)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, seconds=60)
    wait_until(lambda: not strays(home), seconds=30)


@pytest.mark.parametrize("seconds", [0.3, 2.0, 6.0])
def test_ctrl_c_while_it_starts(tmp_path, seconds):
    command = [sys.executable, "-m", "roadless.service.cli", "up", "--home", str(tmp_path / "home")]
    command += ["--port", str(free_port()), "--num-cpus", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert seconds < 1 or TRACEBACK not in said, "before that it is Python itself that starts"
    wait_until(lambda: not strays(tmp_path / "home"), seconds=20)


def in_a_file(folder):
    (folder / "file").write_text("x")
    return folder / "file" / "home", {}


def with_a_file_as_home(folder):
    (folder / "file").write_text("x")
    return folder / "file", {}


def on_garbage(folder):
    (folder / "home").mkdir()
    (folder / "home" / "roadless.db").write_bytes(os.urandom(100_000))
    return folder / "home", {}


def with_a_wrong_setting(folder):
    return folder / "home", {"ROADLESS_LEASE_SECONDS": "0"}


def with_another_database(folder):
    return folder / "home", {"DATABASE_URL": "mysql://user:hunter2@host/name"}


def with_a_database_that_is_away(folder):
    return folder / "home", {"DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/name"}


def with_a_key_that_is_none(folder):
    return folder / "home", {"ROADLESS_SECRETS_KEY": "hunter2"}


@pytest.mark.parametrize(
    "made",
    [
        in_a_file,
        with_a_file_as_home,
        on_garbage,
        with_a_wrong_setting,
        with_another_database,
        with_a_database_that_is_away,
        with_a_key_that_is_none,
    ],
)
@pytest.mark.parametrize("what", ["up", "service"])
def test_a_start_that_cannot_work(tmp_path, made, what, figure):
    """One line says why, without a password, and the exit status is not 0."""
    home, environ = made(tmp_path)
    port = str(free_port())
    commands = {
        "up": [
            "roadless.service.cli",
            "up",
            "--home",
            str(home),
            "--port",
            port,
            "--num-cpus",
            "1",
        ],
        "service": ["roadless.service.main"],
    }
    environ |= {"ROADLESS_HOME": str(home), "ROADLESS_PORT": port}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *commands[what]],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=180,
    )
    said = (done.stdout + done.stderr).strip()
    figure(f"{time.monotonic() - began:.1f} s: {said.splitlines()[-1][:160]}")
    assert done.returncode not in (0, None)
    assert TRACEBACK not in said
    assert "hunter2" not in said
    assert not strays(tmp_path)


def test_a_port_that_is_taken(tmp_path):
    other = UpStack(tmp_path / "other", num_cpus=1)
    try:
        command = [
            "roadless.service.cli",
            "up",
            "--home",
            str(tmp_path / "home"),
            "--num-cpus",
            "1",
        ]
        done = subprocess.run(
            [sys.executable, "-m", *command, "--port", str(other.port)],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        other.stop()
        other.kill_all()
    assert done.returncode not in (0, None)
    assert str(other.port) in done.stdout + done.stderr
    assert TRACEBACK not in done.stdout + done.stderr
