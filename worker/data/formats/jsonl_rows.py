"""Rows of a file of JSON objects, one per line, in UTF-8."""

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from roadless.worker.data.formats.chunk import Choose, Chunk, gathered, require_columns, shown
from roadless.worker.data.formats.compression import opened_plain
from roadless.worker.data.formats.lines import decoded, lines_of
from roadless.worker.errors import DataInvalid

#: An object, and the bytes of its text.
Sized = tuple[dict[str, Any], int]


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen fields of each object; the first object determines which fields there are.

    ``file``: its name in messages. Raises DataInvalid with the row for a line that is not an
    object, has a field twice, lacks a field, or has one that the first lacks and that is needed.
    """
    with opened_plain(path, file=file) as content:
        yield from chunks_of(_objects(content, file=file), file=file, choose=choose)


def chunks_of(objects: Iterator[Sized], *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen fields of consecutive objects; as :func:`read` does."""
    first = next(objects, None)
    if first is None:
        return
    names = choose(list(first[0]), file)
    yield from gathered(
        _rows(chain([first], objects), names=names, choose=choose, file=file),
        names=names,
        file=file,
    )


def _rows(
    objects: Iterator[Sized], *, names: Sequence[str], choose: Choose, file: str
) -> Iterator[tuple[Sequence[Any], int]]:
    """The values of each row. A row with other fields than the one before is judged anew.

    Without that, what the first row lacks would be dropped from all rows.
    """
    known: Set[str] = set()
    for row, (record, num_bytes) in enumerate(objects, start=1):
        if record.keys() != known:
            require_columns(names, list(record), file=f"{file}, row {row}")
            choose(list(record), f"{file}, row {row}")
            known = record.keys()
        yield [record[name] for name in names], num_bytes


def _objects(content: BinaryIO, *, file: str) -> Iterator[Sized]:
    lines = lines_of(content)
    for row, line in enumerate(lines, start=1):
        if not line.strip() and not any(rest.strip() for rest in lines):
            return  # blank lines may end a file
        # Decoded here: json.loads takes bytes that look like UTF-16 for that.
        text = decoded(line, row, file=file, unit="row")
        yield _object(text, where=f"{file}, row {row}"), len(line)


def _object(text: str, *, where: str) -> dict[str, Any]:
    with translated(where, way_out="; write one object a line"):
        record = DECODER.decode(text)
    return require_object(record, where=where, way_out="; write one object a line")


@contextmanager
def translated(where: str, *, way_out: str = "") -> Iterator[None]:
    """Raise DataInvalid for JSON that cannot be read in the block.

    ``where``: the file, or a row of it. ``way_out``: what the user can do.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{where}: expected UTF-8, saw: {error}") from error
    except _Repeated as error:
        raise DataInvalid(
            f"{where}, column {error.name!r}: expected each name of an object once, saw it twice"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"{where}: expected a JSON object, saw: {error}{way_out}") from error


def require_object(record: Any, *, where: str, way_out: str = "") -> dict[str, Any]:
    """Return the value. Raises DataInvalid unless it is an object."""
    if not isinstance(record, dict):
        raise DataInvalid(f"{where}: expected a JSON object, saw {shown(record)}{way_out}")
    return record


class _Repeated(Exception):
    """An object has a name twice: Python's json keeps the last value, others keep the first."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(next(name for name in names if names.count(name) > 1))
    return record


class _Decoder(json.JSONDecoder):
    """Reads integers of any length: Python's int refuses thousands of digits, in any column."""

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        try:
            return super().raw_decode(s, idx)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return _OF_LONG_INTEGERS.raw_decode(s, idx)


#: As decimals, which the column then refuses by its name if it is read.
_OF_LONG_INTEGERS = json.JSONDecoder(object_pairs_hook=_distinct, parse_int=Decimal)
#: Reads JSON values, and no object with a name twice.
DECODER = _Decoder(object_pairs_hook=_distinct)
