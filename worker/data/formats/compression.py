"""Files of text that may be compressed: recognised by how they begin, whatever they are called."""

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, cast

from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.errors import DataInvalid

#: How each begins, and its name. No text does: most of these bytes are not UTF-8, and bzip2's are
#: those of pi.
_BEGINNINGS: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
}
#: What zstd lets stand before its content: pzstd begins with one (RFC 8878, skippable frames).
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
#: What is packed in another way, or holds several files. A tar archive has its name further on.
_OTHERS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x04\x22\x4d\x18": "lz4 content",
    b"\x5d\x00\x00": "lzma content of the old form",
    b"\x1f\x9d": "content of compress (.Z)",
}
_TAR_NAMES, _TAR_AT = (b"ustar\0", b"ustar  \0"), 257
_BEGINNING_BYTES = 512
_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)


@contextmanager
def opened_plain(path: Path, *, file: str) -> Iterator[BinaryIO]:
    """Yield the content of a file, unpacked on the way if it is compressed.

    ``file``: its name in messages. Raises DataInvalid for compressed content that is cut
    or damaged, and for what is packed in another way.
    """
    with path.open("rb") as packed:
        kind = _kind_of(packed.read(_BEGINNING_BYTES))
    with nullcontext() if kind is None else _translated(kind, file=file):
        with _OPENERS[kind](path) as content:
            _require_plain(content, file=file)
        with _OPENERS[kind](path) as content:
            yield content


@contextmanager
def _translated(kind: str, *, file: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise DataInvalid(
            f"{file}: expected whole and undamaged {kind} content, saw: {error}"
        ) from error


def _kind_of(beginning: bytes) -> str | None:
    if _SKIPPABLE.match(beginning):
        return "zstd"
    return next((kind for how, kind in _BEGINNINGS.items() if beginning.startswith(how)), None)


def _require_plain(content: BinaryIO, *, file: str) -> None:
    """Raise DataInvalid unless this is the content itself, as far as its beginning tells.

    A tar archive, say, would otherwise be read as a text with the names of its files in it.
    """
    beginning = content.read(_BEGINNING_BYTES)
    seen = next((what for how, what in _OTHERS.items() if beginning.startswith(how)), None)
    if beginning[_TAR_AT:].startswith(_TAR_NAMES):
        seen = "a tar archive"
    if seen is None and (again := _kind_of(beginning)) is not None:
        seen = f"{again} content in compressed content"
    if seen is not None:
        raise DataInvalid(
            f"{file}: expected one file, plain or compressed once with gzip, zstd, xz or bzip2, "
            f"saw {seen}; unpack it"
        )


def _open_zstd(path: Path) -> BinaryIO:
    return cast(BinaryIO, lazy_import("formats.arrow_rows").open_zstd(path))


_OPENERS: Mapping[str | None, Callable[[Path], BinaryIO]] = {
    None: lambda path: path.open("rb"),
    "gzip": lambda path: cast(BinaryIO, gzip.GzipFile(path)),
    "zstd": _open_zstd,
    "xz": lambda path: cast(BinaryIO, lzma.LZMAFile(path)),  # noqa: SIM115 - the caller closes it
    "bzip2": lambda path: cast(BinaryIO, bz2.BZ2File(path)),
}
