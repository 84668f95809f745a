"""Files of text that may be compressed: recognised by how they begin, whatever they are called."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
_LONGEST_BEGINNING = max(map(len, _BEGINNINGS))
_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError)


@contextmanager
def opened_plain(path: Path, *, file: str) -> Iterator[BinaryIO]:
    """Yield the content of a file, unpacked on the way if it is compressed.

    ``file``: its name in messages. Raises DataInvalid for compressed content that is cut
    or damaged.
    """
    kind = _kind(path)
    if kind is None:
        with path.open("rb") as content:
            yield content
        return
    try:
        with _OPENERS[kind](path) as content:
            yield content
    except _BROKEN as error:
        raise DataInvalid(
            f"{file}: expected whole and undamaged {kind} content, saw: {error}"
        ) from error


def _kind(path: Path) -> str | None:
    with path.open("rb") as content:
        beginning = content.read(_LONGEST_BEGINNING)
    return next((kind for how, kind in _BEGINNINGS.items() if beginning.startswith(how)), None)


def _open_zstd(path: Path) -> BinaryIO:
    return cast(BinaryIO, lazy_import("formats.arrow_rows").open_zstd(path))


_OPENERS: Mapping[str, Callable[[Path], BinaryIO]] = {
    "gzip": lambda path: cast(BinaryIO, gzip.GzipFile(path)),
    "zstd": _open_zstd,
    "xz": lambda path: cast(BinaryIO, lzma.LZMAFile(path)),  # noqa: SIM115 - the caller closes it
    "bzip2": lambda path: cast(BinaryIO, bz2.BZ2File(path)),
}
