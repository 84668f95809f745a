"""Rows of a JSON file of either form: objects line by line, or one array of objects."""

import re
from collections.abc import Iterator
from pathlib import Path

from roadless.worker.data.formats import jsonl_rows
from roadless.worker.data.formats.chunk import Choose, Chunk
from roadless.worker.data.formats.compression import opened_plain
from roadless.worker.data.formats.jsonl_rows import DECODER, Sized, require_object, translated
from roadless.worker.errors import DataInvalid

#: An array is held in memory as a whole.
MAX_ARRAY_BYTES = 2**30
_ARRAY_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")
_BLANKS = re.compile(r"[ \t\r\n]*")
_BEGINNING_BYTES = 4096


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen fields of each object, as ``jsonl_rows.read`` does.

    ``file``: its name in messages.
    """
    with opened_plain(path, file=file) as content:
        is_array = _ARRAY_BEGINS.match(content.read(_BEGINNING_BYTES)) is not None
    if not is_array:
        yield from jsonl_rows.read(path, file=file, choose=choose)
        return
    text = _array(path, file=file)
    yield from jsonl_rows.chunks_of(_objects(text, file=file), file=file, choose=choose)


def _array(path: Path, *, file: str) -> str:
    with opened_plain(path, file=file) as content:
        array = content.read(MAX_ARRAY_BYTES + 1)
    if len(array) > MAX_ARRAY_BYTES:
        raise DataInvalid(
            f"{file}: expected an array of at most {MAX_ARRAY_BYTES} bytes, which has to fit in "
            "memory, saw more; write one object a line"
        )
    with translated(file):
        return array.decode("utf-8-sig")


def _objects(text: str, *, file: str) -> Iterator[Sized]:
    at, row = _after_blanks(text, text.index("[") + 1), 0
    while row > 0 or not text.startswith("]", at):
        row += 1
        where = f"{file}, row {row}"
        with translated(where):
            record, end = DECODER.raw_decode(text, at)
        yield require_object(record, where=where), end - at
        at = _after_blanks(text, end)
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            raise DataInvalid(f"{where}: expected , or ] behind it, saw {text[at : at + 20]!r}")
        at = _after_blanks(text, at + 1)
    rest = text[at + 1 :].strip()
    if rest:
        raise DataInvalid(f"{file}: expected nothing behind the array, saw {rest[:20]!r}")


def _after_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None
    return found.end()
