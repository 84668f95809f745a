"""The spool is a queue, whatever the disk does, and gives back what it no longer needs."""

import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from small_disk import SmallDisk

from roadless.worker.reporting import spool
from roadless.worker.reporting.spool import Spool

SEGMENT = 64
LINE = st.binary(min_size=1, max_size=40)


class QueueOnDisk(RuleBasedStateMachine):
    """Small segments, short writes, and a disk that is full now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool, "SEGMENT_BYTES", SEGMENT)
        self.disk = SmallDisk()
        self.patch.setattr(spool.tempfile, "TemporaryFile", self.disk)
        self.spool = Spool(Path())
        self.model: deque[bytes] = deque()

    def teardown(self) -> None:
        self.spool.close()
        assert not self.disk.open_files
        self.patch.undo()

    @rule(line=LINE)
    def append(self, line: bytes) -> None:
        if self.disk.room >= len(line):
            self.spool.append(line)
            self.model.append(line)
        else:
            with pytest.raises(OSError, match="No space left"):
                self.spool.append(line)

    @rule(line=LINE)
    def append_in_memory(self, line: bytes) -> None:
        self.spool.append_in_memory(line)
        self.model.append(line)

    @rule(room=st.sampled_from([0, 3, 20, 1 << 40]))
    def change_room(self, room: int) -> None:
        self.disk.room = room

    @rule(count=st.integers(0, 30))
    def peek(self, count: int) -> None:
        assert self.spool.peek(count) == list(self.model)[:count]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.model)))
        self.spool.drop(count)
        for _ in range(count):
            self.model.popleft()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(self.spool) == len(self.model)
        assert self.spool.pending_bytes == sum(map(len, self.model))
        assert self.spool.peek(len(self.model)) == list(self.model)

    @invariant()
    def holds_little_more(self) -> None:
        """At most the consumed part of the first segment, and a refused line after the last."""
        assert self.disk.held_bytes <= self.spool.pending_bytes + SEGMENT + 2 * 40


QueueOnDisk.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_it_is_a_queue = pytest.mark.timeout(60)(QueueOnDisk.TestCase)


def test_an_empty_spool_holds_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", disk)
    queue = Spool(tmp_path)
    for line in (b"a", b"b", b"c"):
        queue.append(line)
    queue.drop(2)
    assert len(disk.open_files) == 1
    queue.drop(1)
    assert not disk.open_files


def test_a_new_segment_begins_when_one_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", disk)
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 10)
    queue = Spool(tmp_path)
    for _ in range(9):
        queue.append(b"12345")
    assert sorted(len(file.getvalue()) for file in disk.open_files) == [5, 10, 10, 10, 10]


def test_a_refused_line_does_not_stand_in_the_way_of_reading(tmp_path: Path) -> None:
    """A real file, full after 100 bytes: no buffer offers the line again when it is read."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
spool.append(b"x" * 60)
try:
    spool.append(b"y" * 60)
except OSError:
    assert spool.peek(9) == [b"x" * 60]
    spool.append(b"z" * 40)
    assert spool.peek(9) == [b"x" * 60, b"z" * 40]
    print("refused")
"""
    assert run_with_spool(code, tmp_path) == (0, "refused\n")


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    code = "import os; spool.append(b'x' * 1000); os.kill(os.getpid(), 9)"
    assert run_with_spool(code, tmp_path) == (-9, "")
    assert list(tmp_path.iterdir()) == []


def run_with_spool(code: str, folder: Path) -> tuple[int, str]:
    head = (
        "import sys; from pathlib import Path; from roadless.worker.reporting.spool import Spool\n"
    )
    made = "spool = Spool(Path(sys.argv[1]))\n"
    ran = subprocess.run(
        [sys.executable, "-c", head + made + code, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout
