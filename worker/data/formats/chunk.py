"""Records between file and samples: some rows at a time, each with its position."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from roadless.worker.errors import DataInvalid

#: Rows and bytes that a reader gathers before it passes them on.
CHUNK_ROWS = 4096
CHUNK_BYTES = 16 * 2**20

#: Values of one column: an array where the file has numbers, else whatever the format yields.
Column = NDArray[Any] | Sequence[Any]
_SHOWN_LENGTH = 80


class Choose(Protocol):
    """From the columns that a file or a row has to those to read."""

    def __call__(
        self, present: Sequence[str], where: str, *, aside: Collection[str] = ()
    ) -> Sequence[str]:
        """Return the columns to read, in order; raise DataInvalid where there are others.

        ``where``: the file, or a row of it, for messages. ``aside``: columns, present or nameless,
        that are read only if they are asked for by name, such as an index that pandas wrote.
        """


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file. ``first_row`` counts from 1; a header is not a row."""

    file: str
    first_row: int
    columns: Mapping[str, Column]
    #: Whether the format has texts only, so that a number is one as it is written.
    is_text_only: bool = False

    def refuse(
        self, row: int, column: str, *, expected: str, seen: str, way_out: str = ""
    ) -> NoReturn:
        """Raise DataInvalid for the value in this row of the chunk, counted from 0.

        ``seen``: see :func:`shown`. ``way_out``: what the user can do.
        """
        raise DataInvalid(
            f"{self.file}, row {self.first_row + row}, column {column!r}: expected {expected}, "
            f"saw {seen}" + (f"; {way_out}" if way_out else "")
        )


@dataclass(frozen=True)
class Piece:
    """Part of a text. ``ends_text``: whether the next piece belongs to another one."""

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
            f"{_way_out(absent[0], present)}"
        )


def _way_out(absent: str, present: Sequence[str]) -> str:
    """What most likely helps: a name in other letters, or another delimiter of a csv file."""
    plain = absent.strip().casefold()
    alike = next((name for name in present if name.strip().casefold() == plain), None)
    if alike is not None:
        return f"; name it as {alike!r}"
    parts = re.split(r"([^\w\"' ])", present[0]) if len(present) == 1 else []
    if len(parts) > 1 and absent in (part.strip("\"' ") for part in parts):
        return f"; name the `delimiter` of the file, {parts[1]!r}"
    return ""


def shown_names(names: Sequence[str], *, at_most: int = 20) -> str:
    """The first names, as messages show them."""
    rest = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + rest or "none"


def gathered(
    rows: Iterator[tuple[Sequence[Any], int]],
    *,
    names: Sequence[str],
    file: str,
    is_text_only: bool = False,
) -> Iterator[Chunk]:
    """Chunks of rows that come one by one, each with its size in bytes."""
    first_row, held, size = 1, [], 0
    for row, num_bytes in rows:
        held.append(row)
        size += num_bytes
        if len(held) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield Chunk(file, first_row, _columns(held, names), is_text_only)
            first_row, held, size = first_row + len(held), [], 0
    if held:
        yield Chunk(file, first_row, _columns(held, names), is_text_only)


def _columns(rows: list[Any], names: Sequence[str]) -> dict[str, Column]:
    return dict(zip(names, zip(*rows, strict=True), strict=True))
