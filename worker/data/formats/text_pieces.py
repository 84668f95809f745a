"""Files that are one text, or raw bytes: read a piece at a time, however large they are."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from roadless.worker.data.formats.chunk import Piece
from roadless.worker.data.formats.compression import opened_plain
from roadless.worker.errors import DataInvalid

#: A longer text is tokenised in pieces of about this size, which end at a line end if possible.
PIECE_BYTES = 2**20
#: Bytes of a character in UTF-8, at most.
_LONGEST_CHARACTER = 4


def read_bytes(path: Path) -> Iterator[Piece]:
    """Yield the bytes of a file as they are."""
    with path.open("rb") as content:
        while block := content.read(PIECE_BYTES):
            yield Piece(block, ends_text=False)


def read_text(path: Path, *, file: str) -> Iterator[Piece]:
    """Yield a text in UTF-8, without a mark of byte order. Raises DataInvalid with the line where
    it is no UTF-8.

    ``file``: its name in messages.
    """
    with opened_plain(path, file=file) as content:
        held, line = content.read(len(BOM_UTF8)).removeprefix(BOM_UTF8), 1
        while block := content.read(PIECE_BYTES):
            held += block
            end = _last_cut(held)
            piece, held = held[:end], held[end:]
            _require_utf8(piece, file=file, line=line)
            line += piece.count(b"\n")
            if piece:
                yield Piece(piece, ends_text=False)
        _require_utf8(held, file=file, line=line)
        yield Piece(held, ends_text=True)


def _last_cut(content: bytes) -> int:
    """Where the last incomplete line begins; in one long line, the last character.

    That character may be cut short, so it waits for the next piece.
    """
    newline = content.rfind(b"\n")
    if newline >= 0:
        return newline + 1
    start = len(content) - 1
    while start > 0 and content[start] & 0xC0 == 0x80:  # inside a character
        start -= 1
    return start if start or len(content) < _LONGEST_CHARACTER else len(content)


def _require_utf8(content: bytes, *, file: str, line: int) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        at = line + content.count(b"\n", 0, error.start)
        raise DataInvalid(
            f"{file}, line {at}: expected UTF-8, saw byte {content[error.start]:#04x}"
        ) from error
