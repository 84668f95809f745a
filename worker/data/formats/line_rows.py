"""Rows of a text file in UTF-8 whose every line is one text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from roadless.worker.data.formats.chunk import MAX_RECORD_BYTES, Choose, Chunk, gathered
from roadless.worker.data.formats.compression import opened_plain
from roadless.worker.errors import DataInvalid

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
    while block := content.readline(MAX_RECORD_BYTES + 1):
        for line in _lines(block):
            row += 1
            if len(line) > MAX_RECORD_BYTES:
                raise DataInvalid(
                    f"{file}, row {row}: expected at most {MAX_RECORD_BYTES} bytes, saw more"
                )
            yield [_text(line, row, file=file)], len(line)


def _lines(block: bytes) -> list[bytes]:
    """The lines of what ends with a newline, since a carriage return alone also ends one."""
    return block.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")


def _text(line: bytes, row: int, *, file: str) -> str:
    try:
        # Only a file may begin with a mark of byte order.
        return line.decode("utf-8-sig" if row == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataInvalid(
            f"{file}, row {row}: expected UTF-8, saw byte {line[error.start]:#04x}"
        ) from error
