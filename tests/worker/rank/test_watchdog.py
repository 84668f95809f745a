"""A rank that hangs says where, and dies: a watchdog alone, and beside a frozen peer."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from fake_attempt_server import serving
from rank_runs import Ranks
from training_bench import make_brief
from worker_drills import wait_until

from roadless.service.contract.reports.events import Failed, StepMetrics
from roadless.service.contract.states import RETRYABLE, Reason
from roadless.worker.rank.watchdog import TOLD_CHARACTERS, Watchdog


def test_a_silence_is_told_once_with_the_stacks_of_all_threads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has all of them; the message their end, where the main thread is."""
    told: list[str] = []
    is_over = threading.Event()

    def hang_here() -> None:
        is_over.wait(20)

    hanging = threading.Thread(target=hang_here)
    hanging.start()
    watchdog = Watchdog(0.2, on_hang=told.append)
    watchdog.beat()
    wait_until(lambda: bool(told))
    watchdog.close()
    is_over.set()
    hanging.join()
    (message,) = told
    assert message.startswith("expected a step within 0.2 s, saw none")
    assert "in hang_here" in caplog.text
    assert "most recent call first" in caplog.text
    assert len(message) < TOLD_CHARACTERS + 200


def test_beats_keep_it_quiet_and_nothing_is_watched_before_the_first_or_after_the_end() -> None:
    told: list[str] = []
    unarmed = Watchdog(0.01, on_hang=told.append)
    beating = Watchdog(5.0, on_hang=told.append)
    for _ in range(3):
        beating.beat()
        time.sleep(0.02)
    beating.close()
    unarmed.close()
    assert told == []


def test_what_keeps_the_interpreter_to_itself_is_killed_with_its_stacks_in_the_log() -> None:
    """No Python thread runs while native code holds the lock; the C timer does."""
    program = """
        import ctypes
        from roadless.worker.rank.watchdog import Watchdog

        def hold_the_lock():
            ctypes.PyDLL(None).sleep(60)

        Watchdog(0.5, on_hang=print).beat()
        hold_the_lock()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 1
    assert "in hold_the_lock" in ended.stderr
    assert ended.stdout == ""


def test_a_rank_whose_peer_is_frozen_says_where_it_hangs_and_leaves(
    ranks: Ranks, tmp_path: Path
) -> None:
    """SIGSTOP: the peer lives and holds its connections, so the collective waits for it."""
    brief = make_brief(parallelism={"num_workers": 2}, budget=None, retry={"hang_seconds": 4})
    with serving(brief) as server:

        def release_when_told(event: object) -> bool:
            if isinstance(event, Failed):
                os.kill(int((tmp_path / "frozen.pid").read_text()), signal.SIGKILL)
            return False

        server.service.refuses = release_when_told
        codes = ranks.run(tmp_path, "rank:freezing", world_size=2, url=server.url)
        said = server.service.said
    assert codes[0] == 0
    assert codes[1] != 0
    failed = said[-1]
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.RANK_HUNG
    assert failed.reason in RETRYABLE
    assert failed.message.startswith("rank 0: expected a step within 4 s, saw none")
    assert "in train_step" in failed.message
    assert [event.step for event in said if isinstance(event, StepMetrics)] == [1, 2]
    log = (tmp_path / "rank-0.log").read_text()
    assert "in _send_forever" in log
    assert "in train_step" in log
