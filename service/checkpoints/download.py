"""A checkpoint as one tar stream, made while it is sent: nothing is held in memory or on disk."""

import re
import tarfile
from collections.abc import Iterable, Iterator
from datetime import datetime

from roadless.service.errors import RangeNotSatisfiable

_SINGLE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and end (exclusive) of the range, or None to send the whole file.

    A header that is malformed, or asks for several ranges, is ignored as the RFC allows.
    """
    match = _SINGLE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise RangeNotSatisfiable(match.string, size=size)
    return start, stop


_BLOCK = tarfile.BLOCKSIZE


def tar_stream(
    files: Iterable[tuple[str, int, Iterable[bytes]]], *, modified: datetime
) -> Iterator[bytes]:
    """The bytes of a tar archive of (name, size, content) entries."""
    for name, size, content in files:
        yield _header(name, size, modified)
        yield from content
        yield b"\0" * (-size % _BLOCK)
    yield b"\0" * (2 * _BLOCK)


def tar_size(sizes: Iterable[int]) -> int:
    """The length in bytes of that archive, for Content-Length."""
    return sum(_BLOCK + size + -size % _BLOCK for size in sizes) + 2 * _BLOCK


def _header(name: str, size: int, modified: datetime) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(modified.timestamp()), 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)
