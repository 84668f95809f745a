"""Full disks, on small file systems in memory, while two jobs train. As root only.

What cannot be stored waits: no attempt ends, no point is lost, and nothing has to be restarted once
there is room again. Checkpoints that could not be written are said to be missing, and made again.
"""

import collections
import contextlib
import os
import signal
import subprocess
import time

import pytest
from pairs import LONG
from stack import wait_until
from up_stack import SERVICE, UpStack, frozen

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")

SECONDS = 20
MIB = 2**20


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """The home, its blobs and its scratch folder on file systems of their own."""
    home = tmp_path_factory.mktemp("disks") / "home"
    mounts = {home: 300, home / "blobs": 120, home / "scratch": 120}
    for folder, num_mib in mounts.items():
        folder.mkdir(parents=True, mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_mib}m,mode=700", "tmpfs", str(folder)]
        subprocess.run(command, check=True)
    stack = UpStack(home, environ={"ROADLESS_LEASE_SECONDS": "10"})
    yield stack
    stopped = stack.stop()
    stack.kill_all()
    for folder in reversed(mounts):
        subprocess.run(["umount", str(folder)], check=True)
    assert not stopped.left


@contextlib.contextmanager
def full(folder):
    """Not a byte is free there for as long as the block lasts."""
    ballast = [folder / f"ballast-{size}" for size in (MIB, 4096, 1)]
    for path, size in zip(ballast, (MIB, 4096, 1), strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while os.write(file, b"\0" * size):
                pass
        os.close(file)
    try:
        yield
    finally:
        for path in ballast:
            path.unlink(missing_ok=True)


def test_no_room_for_checkpoints(up, drill):
    """The probe says that the disk is full; training goes on."""

    def fault(_pair):
        with full(up.home / "blobs"):
            time.sleep(SECONDS)
            assert up.ask("/readyz").status_code == 503

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_no_room_where_ranks_write(up, drill):
    """Neither for the spool nor for checkpoints on their way."""

    def fault(_pair):
        with full(up.home / "scratch"):
            time.sleep(SECONDS)

    drill(up, fault, steps=LONG)


def test_no_room_where_ranks_write_while_the_service_is_away(up, drill):
    """The spool cannot grow, and nobody takes what it holds: training waits."""

    def fault(_pair):
        with full(up.home / "scratch"), frozen(up.process.pid):
            os.kill(up.pid(SERVICE), signal.SIGKILL)
            time.sleep(SECONDS)
        wait_until(up.is_ready)

    drill(up, fault, steps=LONG)


def test_no_room_for_the_database(up, drill):
    """Readers are answered. Writers are too as long as its log has room, and then get 503."""

    def fault(pair):
        answers = collections.Counter()
        with full(up.home):
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                assert up.ask(f"/v1/jobs/{pair.ids[0]}").status_code == 200
                name = {"name": f"x{answers.total()}", "format": "bytes"}
                answers[up.ask("/v1/datasets", method="POST", json=name).status_code] += 1
                time.sleep(0.5)
        assert set(answers) <= {201, 503}
        return f"writers: {dict(answers)}"

    assert drill(up, fault, steps=LONG).fences == [1, 1]


def test_no_room_for_the_database_when_the_service_starts(up, drill):
    """It is killed on a full disk, and comes up by itself once there is room."""

    def fault(_pair):
        with full(up.home):
            os.kill(up.pid(SERVICE), signal.SIGKILL)
            time.sleep(15)
        began = time.monotonic()
        wait_until(up.is_ready)
        return f"ready {time.monotonic() - began:.1f} s after there is room"

    assert drill(up, fault, steps=LONG).fences == [1, 1]
