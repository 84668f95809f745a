"""Claims: nothing begins twice on a node, and whoever looks knows what lives."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from worker_drills import is_alive, wait_until

from roadless.worker.agent import claims

_HEAD = """
import os, subprocess, sys, time
from pathlib import Path
from roadless.worker.agent import claims
folder = Path(sys.argv[1])
"""
STAY = "claims.claim_rank(folder, 0); print(flush=True); time.sleep(600)"
EXEC = """
claims.claim_rank(folder, 0)
if len(sys.argv) == 2:
    os.execv(sys.executable, [*sys.orig_argv, "again"])
print(flush=True)
time.sleep(600)
"""
FORK = """
claims.claim_rank(folder, 0)
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "att_1").mkdir()
    return tmp_path / "att_1"


@contextmanager
def running(program: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process in a session of its own that has come to its first line."""
    command = [sys.executable, "-c", _HEAD + program, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_rank_begins_once_whether_the_first_lives_or_not(folder: Path) -> None:
    assert not claims.have_begun(folder, [0])
    with running(STAY, folder) as rank:
        first_line(rank)
        with pytest.raises(claims.NotClaimed, match="saw a claim of it"):
            claims.claim_rank(folder, 0)
        assert (claims.is_live(folder), claims.live_pids(folder)) == (True, [rank.pid])
    with pytest.raises(claims.NotClaimed):
        claims.claim_rank(folder, 0)
    assert (claims.is_live(folder), claims.live_pids(folder)) == (False, [])
    assert (claims.have_begun(folder, [0]), claims.have_begun(folder, [1])) == (True, False)


def test_a_rank_keeps_its_claim_when_it_becomes_another_program(folder: Path) -> None:
    with running(EXEC, folder) as rank:
        first_line(rank)
        assert claims.live_pids(folder) == [rank.pid]


def test_a_rank_lives_as_long_as_what_it_has_forked(folder: Path) -> None:
    with running(FORK, folder) as rank:
        child = int(first_line(rank))
        rank.wait()
        assert claims.is_live(folder)
        claims.kill(folder)
        wait_until(lambda: not claims.is_live(folder))
        wait_until(lambda: not is_alive(child))


def test_no_rank_begins_once_its_attempt_is_over(folder: Path) -> None:
    claims.mark_over(folder)
    with pytest.raises(claims.NotClaimed, match="over"):
        claims.claim_rank(folder, 0)


def test_a_kill_spares_who_is_looking_at_a_claim(folder: Path) -> None:
    look = "looked_at = open(folder / 'rank-0.claim', 'rb'); print(flush=True); time.sleep(600)"
    with running(STAY, folder) as rank:
        first_line(rank)
        with running(look, folder) as agent:
            first_line(agent)
            claims.kill(folder)
            assert rank.wait(10) == -signal.SIGKILL
            with pytest.raises(subprocess.TimeoutExpired):
                agent.wait(0.5)


def test_a_kill_finds_what_has_the_claim(folder: Path) -> None:
    with running(STAY, folder) as rank:
        first_line(rank)
        claims.kill(folder)
        assert rank.wait(10) == -signal.SIGKILL


def test_a_kill_spares_a_process_that_only_has_the_number_of_a_rank(folder: Path) -> None:
    """A claim may be older than the process that its number is now of."""
    with running(STAY, folder) as rank, running("print(flush=True); time.sleep(600)", folder) as it:
        first_line(rank)
        first_line(it)
        (folder / "rank-0.claim").write_text(str(it.pid))
        claims.kill(folder)
        assert rank.wait(10) == -signal.SIGKILL
        with pytest.raises(subprocess.TimeoutExpired):
            it.wait(0.5)


def test_without_room_for_a_byte_everything_is_claimed_seen_and_killed(folder: Path) -> None:
    """A rank trains without it too."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        (folder / "full").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space left"):
            (folder / "more").write_bytes(b"x")
        claim = claims.claim_attempt(folder)
        with running(STAY, folder) as rank:
            first_line(rank)
            assert claims.is_live(folder)
            claims.kill(folder)
            assert rank.wait(10) == -signal.SIGKILL
        assert claims.have_begun(folder, [0])
        claims.give_up(claim)
        assert not claims.is_live(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_one_agent_at_a_time_has_an_attempt(folder: Path) -> None:
    with running(
        "fd = claims.claim_attempt(folder); print(flush=True); time.sleep(9)", folder
    ) as it:
        first_line(it)
        with pytest.raises(claims.NotClaimed, match=f"agent {it.pid} has it"):
            claims.claim_attempt(folder)
        assert claims.is_live(folder)
    os.close(claims.claim_attempt(folder))
    assert not claims.is_live(folder)
