"""Rows of a CSV file in UTF-8 whose first line names the columns; RFC 4180 quotes.

Every value stays a text here; which texts are numbers says ``columns.py``.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from roadless.worker.data.formats.chunk import Choose, Chunk, gathered, shown_names
from roadless.worker.data.formats.compression import opened_plain
from roadless.worker.data.formats.lines import MAX_RECORD_BYTES, decoded, lines_of
from roadless.worker.errors import DataInvalid

csv.field_size_limit(MAX_RECORD_BYTES)


def read(path: Path, *, file: str, choose: Choose, delimiter: str) -> Iterator[Chunk]:
    """Yield the chosen columns as texts. Raises DataInvalid with the row for invalid CSV.

    ``file``: its name in messages.
    """
    with opened_plain(path, file=file) as content:
        lines = (
            decoded(line, number, file=file, unit="line")
            for number, line in enumerate(lines_of(content), start=1)
        )
        records = _records(csv.reader(lines, delimiter=delimiter, strict=True), file=file)
        header = next(records, None)
        if header is None:
            raise DataInvalid(f"{file}: expected a first line that names the columns, saw none")
        named = _without_index(header)
        aside = [""] if len(named) < len(header) else []
        names = choose(_distinct(named, file=file), file, aside=aside)
        positions = [header.index(name) for name in names]
        yield from gathered(
            _rows(records, positions=positions, width=len(header), file=file),
            names=names,
            file=file,
            is_text_only=True,
        )


def _without_index(header: list[str]) -> list[str]:
    """The columns from the first that has a name.

    pandas (``to_csv``) and R (``write.csv``) write row labels first, under an empty name.
    """
    first = next((at for at, name in enumerate(header) if name), len(header))
    return header[first:]


def _records(lines: Iterator[list[str]], *, file: str) -> Iterator[list[str]]:
    try:
        yield from lines
    except csv.Error as error:
        number = getattr(lines, "line_num", 0)
        raise DataInvalid(f"{file}, line {number}: expected CSV, saw: {error}") from error


def _distinct(header: list[str], *, file: str) -> list[str]:
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise DataInvalid(
            f"{file}: expected a distinct name for each column, saw {shown_names(header)}; "
            "rename them"
        )
    return header


def _rows(
    records: Iterator[list[str]], *, positions: Sequence[int], width: int, file: str
) -> Iterator[tuple[Sequence[str], int]]:
    for row, record in enumerate(records, start=1):
        if not record and not any(records):
            return  # blank lines may end a file
        if len(record) != width:
            raise DataInvalid(
                f"{file}, row {row}: expected {width} fields, saw {len(record)}; quote fields that "
                "hold the delimiter, or name another `delimiter`"
            )
        yield [record[at] for at in positions], sum(map(len, record))
