"""Rows of a text file in UTF-8 whose every line is one text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from roadless.worker.data.formats.chunk import Choose, Chunk, gathered
from roadless.worker.data.formats.compression import opened_plain
from roadless.worker.data.formats.lines import decoded, lines_of, require_bounded

#: What the only column is called, as Hugging Face calls it.
COLUMN = "text"


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the lines without their ends, which are those of any system.

    ``file``: its name in messages. Raises DataInvalid with the row for one that is not UTF-8.
    """
    names = choose([COLUMN], file)
    with opened_plain(path, file=file) as content:
        yield from gathered(_rows(content, file=file), names=names, file=file, is_text_only=True)


def _rows(content: BinaryIO, *, file: str) -> Iterator[tuple[Sequence[str], int]]:
    row = 0
    for block in lines_of(content):
        # Before it is parted: what was cut off a block that is too long would become another row.
        require_bounded(block, row + 1, file=file, unit="row")
        for line in _parted(block):
            row += 1
            yield [decoded(line, row, file=file, unit="row")], len(line)


def _parted(block: bytes) -> list[bytes]:
    """The lines of what ends with a newline, since a carriage return alone also ends one."""
    return block.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")
