"""The spool is a queue, whatever the disk does, and gives back what it no longer needs."""

import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from small_disk import SmallDisk

from roadless.worker.reporting import spool
from roadless.worker.reporting.spool import Spool

SEGMENT = 64
LINE = st.binary(min_size=1, max_size=40)


class QueueOnDisk(RuleBasedStateMachine):
    """Small segments, short writes, and a disk that is full now and then."""

    @initialize(kept_bytes=st.sampled_from([0, 3 * SEGMENT]))
    def begin(self, kept_bytes: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(spool, "SEGMENT_BYTES", SEGMENT)
        self.disk = SmallDisk()
        self.patch.setattr(spool.tempfile, "TemporaryFile", self.disk)
        self.spool = Spool(Path(), kept_bytes=kept_bytes)
        self.kept_bytes = kept_bytes
        self.model: deque[bytes] = deque()
        #: Lines that were dropped, the last one last.
        self.dropped: list[bytes] = []

    def teardown(self) -> None:
        self.spool.close()
        assert not self.disk.open_files
        self.patch.undo()

    @rule(lines=st.lists(LINE, min_size=1, max_size=3))
    def append(self, lines: list[bytes]) -> None:
        if self.disk.room >= sum(map(len, lines)):
            self.spool.append(*lines)
            self.model.extend(lines)
        else:
            with pytest.raises(OSError, match="No space left"):
                self.spool.append(*lines)

    @rule(line=LINE)
    def append_in_memory(self, line: bytes) -> None:
        self.spool.append_in_memory(line)
        self.model.append(line)

    @rule(room=st.sampled_from([0, 3, 20, 1 << 40]))
    def change_room(self, room: int) -> None:
        self.disk.room = room

    @rule(count=st.integers(0, 30), max_bytes=st.integers(0, 200))
    def peek(self, count: int, max_bytes: int) -> None:
        seen = self.spool.peek(count, max_bytes=max_bytes)
        assert seen == list(self.model)[: len(seen)]
        fits = len(seen) == min(count, len(self.model))
        assert fits or sum(map(len, list(self.model)[: len(seen) + 1])) > max_bytes
        assert len(seen) <= 1 or sum(map(len, seen)) <= max_bytes

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.model)))
        self.spool.drop(count)
        self.dropped += [self.model.popleft() for _ in range(count)]

    @rule(count=st.integers(1, 6))
    def take_back(self, count: int) -> None:
        """What it gives back is what was dropped last; else nothing has changed."""
        if self.spool.take_back(count):
            self.model.extendleft(reversed(self.dropped[-count:]))
            del self.dropped[-count:]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(self.spool) == len(self.model)
        assert self.spool.pending_bytes == sum(map(len, self.model))
        assert self.spool.peek(len(self.model), max_bytes=1 << 30) == list(self.model)

    @invariant()
    def holds_little_more(self) -> None:
        """At most what is kept, the consumed part of the first segment, and a refused write."""
        most = self.spool.pending_bytes + self.kept_bytes + 3 * SEGMENT + 4 * 40
        assert self.disk.held_bytes <= most


QueueOnDisk.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_it_is_a_queue = pytest.mark.timeout(60)(QueueOnDisk.TestCase)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    disk = SmallDisk()
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", disk)
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 10)
    return disk


def test_what_was_dropped_is_given_back_from_files_up_to_the_bound(
    disk: SmallDisk, tmp_path: Path
) -> None:
    queue = Spool(tmp_path, kept_bytes=20)
    lines = [b"%05d" % n for n in range(9)]
    for line in lines:
        queue.append(line)
    queue.drop(9)
    assert disk.held_bytes == 15
    assert not queue.take_back(4)
    assert len(queue) == 0
    assert queue.take_back(3)
    assert queue.peek(9, max_bytes=100) == lines[-3:]


def test_what_was_dropped_goes_before_anything_is_lost(disk: SmallDisk, tmp_path: Path) -> None:
    """A full disk has room again once what is kept is gone."""
    queue = Spool(tmp_path, kept_bytes=1000)
    for _ in range(4):
        queue.append(b"12345")
    queue.drop(4)
    disk.room, disk.gives_back = 0, True
    queue.append(b"12345")
    assert queue.peek(9, max_bytes=100) == [b"12345"]
    assert disk.held_bytes == 5
    assert not queue.take_back(1)


def test_few_files_hold_what_was_dropped_little_by_little(disk: SmallDisk, tmp_path: Path) -> None:
    queue = Spool(tmp_path, kept_bytes=1000)
    for n in range(100):
        queue.append(b"%05d" % n)
        queue.drop(1)
    assert len(disk.open_files) == 50
    assert queue.take_back(100)


def test_an_empty_spool_holds_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", disk)
    queue = Spool(tmp_path, kept_bytes=0)
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
    queue = Spool(tmp_path, kept_bytes=0)
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
    assert spool.peek(9, max_bytes=1000) == [b"x" * 60]
    spool.append(b"z" * 40)
    assert spool.peek(9, max_bytes=1000) == [b"x" * 60, b"z" * 40]
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
    made = "spool = Spool(Path(sys.argv[1]), kept_bytes=1000)\n"
    ran = subprocess.run(
        [sys.executable, "-c", head + made + code, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout
