"""A first-in, first-out queue of lines on disk that keeps the last lines that were taken from it.

It holds what the service has not acknowledged, so memory stays flat while the service is away; and,
up to a bound, what it has: a database that was restored asks for its last seconds again. It does
not outlive its rank: after a crash the next attempt reports everything since the last training
state again. The files therefore have no name, and a killed rank leaves none behind.
"""

import io
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import IO

SEGMENT_BYTES = 4 << 20
#: Segments kept, however small: each holds a file open.
MAX_KEPT_SEGMENTS = 64


@dataclass
class _Segment:
    file: IO[bytes]
    is_on_disk: bool
    lengths: list[int] = field(default_factory=list)  #: of its lines, in bytes
    written: int = 0  #: bytes
    num_read: int = 0  #: lines
    read: int = 0  #: bytes

    @property
    def num_pending(self) -> int:
        """How many lines are not read."""
        return len(self.lengths) - self.num_read

    def move(self, count: int) -> int:
        """Read ``count`` lines or, if it is negative, take them back; return how many bytes."""
        first, last = sorted((self.num_read, self.num_read + count))
        num_bytes = sum(self.lengths[first:last])
        self.num_read += count
        self.read += num_bytes if count > 0 else -num_bytes
        return num_bytes


class Spool:
    """Lines, none of them empty, in order. Used by one writer and one reader, under their lock."""

    def __init__(self, folder: Path, *, kept_bytes: int) -> None:
        """``kept_bytes``: of dropped lines, on disk; they go first when it is full."""
        self._folder = folder
        self._kept_limit = kept_bytes
        #: Segments of which all lines are dropped, then those with lines that are not.
        self._kept: deque[_Segment] = deque()
        self._segments: deque[_Segment] = deque()
        self._num_pending = 0
        self.pending_bytes = 0

    def __len__(self) -> int:
        return self._num_pending

    @property
    def memory_bytes(self) -> int:
        """Bytes held in memory, for want of room on the disk."""
        return sum(segment.written for segment in self._segments if not segment.is_on_disk)

    def append(self, *lines: bytes) -> None:
        """Add lines at the end; raises OSError, and adds none of them, when the disk is full."""
        try:
            self._write(lines, self._segment_on_disk())
        except OSError:
            if self._segments and not self._segments[0].num_pending:
                self._kept.append(self._segments.popleft())
            if not self._kept:
                raise
            self._forget()
            self._write(lines, self._segment_on_disk())

    def append_in_memory(self, *lines: bytes) -> None:
        """Add lines at the end, in memory: for what the disk has no room for."""
        last = self._segments[-1] if self._segments else None
        if last is None or last.is_on_disk or last.written >= SEGMENT_BYTES:
            last = _Segment(io.BytesIO(), is_on_disk=False)
        self._write(lines, last)

    def peek(self, count: int, *, max_bytes: int) -> list[bytes]:
        """The first lines: up to ``count``, and up to ``max_bytes`` or the first one alone."""
        sizes = accumulate(islice(self._pending_lengths(), count))
        num_left = sum(size <= max_bytes or n == 0 for n, size in enumerate(sizes))
        lines: list[bytes] = []
        for segment in self._segments:
            lines += _lines_in(segment, min(num_left - len(lines), segment.num_pending))
        return lines

    def drop(self, count: int) -> None:
        """Drop the first ``count`` lines. The last ones dropped are kept, up to the bound."""
        self._num_pending -= count
        while count:
            head = self._segments[0]
            num_taken = min(count, head.num_pending)
            self.pending_bytes -= head.move(num_taken)
            count -= num_taken
            if not head.num_pending:
                self._keep(self._segments.popleft())

    def take_back(self, count: int) -> bool:
        """Put the last ``count`` lines that were dropped back; return False if some are gone."""
        read = [*self._kept, *list(self._segments)[:1]]
        if count > sum(segment.num_read for segment in read):
            return False
        self._num_pending += count
        while count:
            if not self._segments or not self._segments[0].num_read:
                self._segments.appendleft(self._kept.pop())
            head = self._segments[0]
            num_taken = min(count, head.num_read)
            self.pending_bytes += head.move(-num_taken)
            count -= num_taken
        return True

    def close(self) -> None:
        """Drop what is left."""
        self._forget()
        while self._segments:
            self._segments.popleft().file.close()
        self._num_pending = self.pending_bytes = 0

    def _pending_lengths(self) -> Iterator[int]:
        for segment in self._segments:
            yield from islice(segment.lengths, segment.num_read, None)

    def _keep(self, segment: _Segment) -> None:
        """Keep it for ``take_back``. Memory is not kept, nor is what came before it, then."""
        self._kept.append(segment)
        if not segment.is_on_disk:
            self._forget()
        while self._kept and self._keeps_too_much():
            self._kept.popleft().file.close()

    def _keeps_too_much(self) -> bool:
        kept = sum(segment.written for segment in self._kept)
        return kept > self._kept_limit or len(self._kept) > MAX_KEPT_SEGMENTS

    def _forget(self) -> None:
        while self._kept:
            self._kept.popleft().file.close()

    def _segment_on_disk(self) -> _Segment:
        """The segment for the next lines; a new one is in the queue once it has been written to."""
        if not self._segments and self._kept and self._kept[-1].written < SEGMENT_BYTES:
            self._segments.append(self._kept.pop())
        last = self._segments[-1] if self._segments else None
        if last is not None and last.is_on_disk and last.written < SEGMENT_BYTES:
            return last
        self._folder.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a buffer would retry a failed write at the next read.
        file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  the segment's
        return _Segment(file, is_on_disk=True)

    def _write(self, lines: Sequence[bytes], segment: _Segment) -> None:
        is_new = not segment.written
        try:
            _write_at(segment.file, segment.written, b"".join(lines))
        except OSError:
            if is_new:
                segment.file.close()
            raise
        if is_new:
            self._segments.append(segment)
        lengths = list(map(len, lines))
        segment.lengths += lengths
        segment.written += sum(lengths)
        self._num_pending += len(lengths)
        self.pending_bytes += sum(lengths)


def _write_at(file: IO[bytes], place: int, content: bytes) -> None:
    file.seek(place)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _lines_in(segment: _Segment, count: int) -> Iterator[bytes]:
    """Read the segment's next lines in one call, which is most of the cost."""
    lengths = segment.lengths[segment.num_read : segment.num_read + count]
    ends = list(accumulate(lengths))
    segment.file.seek(segment.read)
    content = segment.file.read(ends[-1]) if ends else b""
    return (content[start:end] for start, end in pairwise([0, *ends]))
