"""Records on their way from a file to samples: some rows at a time, each with its place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from roadless.worker.errors import DataInvalid

#: Rows and bytes that a reader gathers before it hands them on.
CHUNK_ROWS = 4096
CHUNK_BYTES = 16 * 2**20
#: The longest line, and the largest field of one: beyond it a file is hardly what it is said to be.
MAX_RECORD_BYTES = 256 * 2**20

#: Values of one column: an array where the file has numbers, else what the file's format gives.
Column = NDArray[Any] | Sequence[Any]
#: From the columns that a file has to those to read, in order; raises DataInvalid.
Choose = Callable[[Sequence[str], str], Sequence[str]]

_SHOWN_LENGTH = 80


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file. ``first_row`` counts from 1; a header is no row."""

    file: str
    first_row: int
    columns: Mapping[str, Column]

    def refuse(self, row: int, column: str, *, expected: str, seen: str) -> NoReturn:
        """Raise DataInvalid for the value in this row of the chunk, counted from 0.

        ``seen``: see :func:`shown`.
        """
        raise DataInvalid(
            f"{self.file}, row {self.first_row + row}, column {column!r}: expected {expected}, "
            f"saw {seen}"
        )


@dataclass(frozen=True)
class Piece:
    """Some of a text. ``ends_text``: whether the next piece belongs to another one."""

    content: bytes  #: UTF-8 unless a file of raw bytes is read
    ends_text: bool


def shown(value: object) -> str:
    """The value as messages show it: short, and on one line."""
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."


def require_columns(wanted: Sequence[str], present: Sequence[str], *, file: str) -> None:
    """Raise DataInvalid unless the file has every column that is wanted."""
    absent = [name for name in wanted if name not in present]
    if absent:
        raise DataInvalid(
            f"{file}: expected a column {absent[0]!r}, saw the columns {shown_names(present)}"
        )


def shown_names(names: Sequence[str], *, at_most: int = 20) -> str:
    """Some names in a row."""
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + rest or "none"


def gathered(
    rows: Iterator[tuple[Sequence[Any], int]], *, names: Sequence[str], file: str
) -> Iterator[Chunk]:
    """Chunks of rows that come one by one, each with its size in bytes."""
    first_row, held, size = 1, [], 0
    for row, num_bytes in rows:
        held.append(row)
        size += num_bytes
        if len(held) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield _chunk(held, names=names, file=file, first_row=first_row)
            first_row, held, size = first_row + len(held), [], 0
    if held:
        yield _chunk(held, names=names, file=file, first_row=first_row)


def _chunk(rows: list[Any], *, names: Sequence[str], file: str, first_row: int) -> Chunk:
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Chunk(file, first_row, columns)
