"""Rows of a file of JSON objects, one a line, in UTF-8."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from roadless.worker.data.formats.chunk import (
    MAX_RECORD_BYTES,
    Choose,
    Chunk,
    gathered,
    require_columns,
    shown,
)
from roadless.worker.errors import DataInvalid


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen fields of each object; the first object tells which fields there are.

    ``file``: what messages call it. Raises DataInvalid with the row for a line that is no object or
    lacks a field.
    """
    with path.open("rb") as content:
        first = next(_objects(content, file=file), None)
        if first is None:
            return
        names = choose(list(first[0]), file)
        content.seek(0)
        yield from gathered(
            _rows(_objects(content, file=file), names=names, file=file), names=names, file=file
        )


def _rows(
    objects: Iterator[tuple[dict[str, Any], int]], *, names: Sequence[str], file: str
) -> Iterator[tuple[Sequence[Any], int]]:
    for row, (record, num_bytes) in enumerate(objects, start=1):
        try:
            yield [record[name] for name in names], num_bytes
        except KeyError:
            require_columns(names, list(record), file=f"{file}, row {row}")


def _objects(content: BinaryIO, *, file: str) -> Iterator[tuple[dict[str, Any], int]]:
    row = 0
    while line := content.readline(MAX_RECORD_BYTES + 1):
        row += 1
        if not line.strip() and not any(rest.strip() for rest in content):
            return  # blank lines may end a file
        yield _object(line, where=f"{file}, row {row}"), len(line)


def _object(line: bytes, *, where: str) -> dict[str, Any]:
    if len(line) > MAX_RECORD_BYTES:
        raise DataInvalid(f"{where}: expected at most {MAX_RECORD_BYTES} bytes, saw more")
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{where}: expected UTF-8, saw: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"{where}: expected a JSON object, saw: {error}") from error
    if not isinstance(record, dict):
        raise DataInvalid(f"{where}: expected a JSON object, saw {shown(record)}")
    return record
