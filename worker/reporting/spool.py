"""A first-in, first-out queue of lines on disk, in segments that are removed once consumed.

It holds what the service has not acknowledged, so memory stays flat while the service is away. It
does not outlive its rank: after a crash the next attempt reports everything since the last training
state again. The files therefore have no name, and a killed rank leaves none behind.
"""

import io
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import IO

SEGMENT_BYTES = 4 << 20


@dataclass
class _Segment:
    file: IO[bytes]
    capacity: int  #: bytes written after which the next segment begins
    written: int = 0  #: bytes
    read: int = 0  #: bytes


class Spool:
    """Lines, none of them empty, in order. Used by one writer and one reader, under their lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._segments: deque[_Segment] = deque()
        self._lengths: deque[int] = deque()
        self.pending_bytes = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, *lines: bytes) -> None:
        """Add lines at the end; raises OSError, and adds none of them, when the disk is full."""
        if not self._segments or self._segments[-1].written >= self._segments[-1].capacity:
            # Unbuffered: a buffer would retry a failed write at the next read.
            file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  _Segment's
            self._segments.append(_Segment(file, SEGMENT_BYTES))
        self._write(lines, self._segments[-1])

    def append_in_memory(self, line: bytes) -> None:
        """Add one line at the end, in memory: for what must not be lost when the disk is full."""
        self._segments.append(_Segment(io.BytesIO(), capacity=0))
        self._write((line,), self._segments[-1])

    def peek(self, count: int) -> list[bytes]:
        """The first ``count`` lines, or as many as there are."""
        lines: list[bytes] = []
        lengths = iter(islice(self._lengths, count))
        for segment in self._segments:
            lines += _lines_in(segment, lengths)
        return lines

    def drop(self, count: int) -> None:
        """Drop the first ``count`` lines, and the segments that held nothing else."""
        for _ in range(count):
            self._remove_consumed()
            length = self._lengths.popleft()
            self._segments[0].read += length
            self.pending_bytes -= length
        self._remove_consumed()

    def close(self) -> None:
        """Drop what is left."""
        while self._segments:
            self._segments.popleft().file.close()
        self._lengths.clear()
        self.pending_bytes = 0

    def _remove_consumed(self) -> None:
        while self._segments and self._segments[0].read == self._segments[0].written:
            self._segments.popleft().file.close()

    def _write(self, lines: Sequence[bytes], segment: _Segment) -> None:
        content = b"".join(lines)
        segment.file.seek(segment.written)
        rest = memoryview(content)
        while rest:
            rest = rest[segment.file.write(rest) :]
        segment.written += len(content)
        self._lengths.extend(map(len, lines))
        self.pending_bytes += len(content)


def _lines_in(segment: _Segment, lengths: Iterator[int]) -> Iterator[bytes]:
    """Read the segment's share of the next lines in one call, which is most of the cost."""
    ends = list(_ends_in(segment, lengths))
    segment.file.seek(segment.read)
    content = segment.file.read(ends[-1]) if ends else b""
    return (content[start:end] for start, end in pairwise([0, *ends]))


def _ends_in(segment: _Segment, lengths: Iterator[int]) -> Iterator[int]:
    end, left = 0, segment.written - segment.read
    while end < left and (length := next(lengths, 0)):
        end += length
        yield end
