"""Lines of a file in UTF-8, of bounded length: what csv, JSON lines and plain texts begin with."""

from collections.abc import Iterator
from typing import BinaryIO, Literal

from roadless.worker.errors import DataInvalid

#: The longest line, and the largest field: beyond it a file is hardly in the format it claims.
MAX_RECORD_BYTES = 256 * 2**20

#: What messages count: a record of csv may have several lines, and a line several records.
Unit = Literal["line", "row"]


def lines_of(content: BinaryIO) -> Iterator[bytes]:
    """Yield the lines with their ends; of one that is too long a part that is so as well."""
    return iter(lambda: content.readline(MAX_RECORD_BYTES + 1), b"")


def require_bounded(line: bytes, number: int, *, file: str, unit: Unit) -> None:
    """Raise DataInvalid for a line of more than MAX_RECORD_BYTES."""
    if len(line) > MAX_RECORD_BYTES:
        raise DataInvalid(
            f"{file}, {unit} {number}: expected at most {MAX_RECORD_BYTES} bytes, saw more"
        )


def decoded(line: bytes, number: int, *, file: str, unit: Unit) -> str:
    """Return the text of a line. Raises DataInvalid if it is too long or not UTF-8.

    ``number``: from 1. Only the first line, as that of a file, may begin with a byte order mark.
    """
    require_bounded(line, number, file=file, unit=unit)
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataInvalid(
            f"{file}, {unit} {number}: expected UTF-8, saw byte {line[error.start]:#04x} "
            f"at position {error.start}; store the file in UTF-8"
        ) from error
