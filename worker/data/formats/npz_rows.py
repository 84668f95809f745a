"""Rows of an npz file: numpy arrays whose first axis is the rows.

Arrays are read from the archive as a stream, a few rows at a time; nothing is unpickled.
"""

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from roadless.worker.data.formats.chunk import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    Choose,
    Chunk,
    Column,
    shown_names,
)
from roadless.worker.errors import DataInvalid

_SUFFIX = ".npy"
_HEADER_BYTES = 65536
#: What numpy's reading of a damaged header raises, which it takes for Python.
_NO_HEADER = (ValueError, TypeError, KeyError, SyntaxError, RecursionError, tokenize.TokenError)
#: The largest array in Fortran order, which is read as a whole.
MAX_FORTRAN_BYTES = 2**30


class _Array(Protocol):
    """An array whose rows are taken from the first to the last."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""

    @property
    def bytes_per_row(self) -> int:
        """Of its numbers."""

    def rows(self, count: int, *, where: str) -> NDArray[Any]:
        """Return the next rows. Raises DataInvalid at a premature end."""


@dataclass(frozen=True)
class _Streamed:
    """Numbers in C order: rows follow each other in the archive."""

    content: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes_per_row(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, count: int, *, where: str) -> NDArray[Any]:
        content = self.content.read(count * self.bytes_per_row)
        if len(content) < count * self.bytes_per_row:
            raise DataInvalid(f"{where}: expected {self.shape[0]} rows, saw the end of the file")
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


class _Held:
    """Numbers in Fortran order, as ``DataFrame.to_numpy`` gives them: columns follow each other,
    so the whole array is held in memory.
    """

    def __init__(self, streamed: _Streamed) -> None:
        self._streamed = streamed
        self._array: NDArray[Any] | None = None
        self._next = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self._streamed.shape

    @property
    def bytes_per_row(self) -> int:
        return self._streamed.bytes_per_row

    def rows(self, count: int, *, where: str) -> NDArray[Any]:
        if self._array is None:
            whole = self._streamed.rows(self.shape[0], where=where)
            self._array = whole.reshape(-1).reshape(self.shape, order="F")
        start, self._next = self._next, self._next + count
        return self._array[start : self._next]


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen arrays, all of equal length. Raises DataInvalid for any other file."""
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            arrays = {}
            for name in choose(_names(archive, file=file), file):
                where = f"{file}, {name!r}"
                content = stack.enter_context(_member(archive, name, where=where))
                arrays[name] = _open(content, where)
            yield from _chunks(arrays, file=file)
    # RuntimeError: a member with a password. zlib.error: a member that was damaged.
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise DataInvalid(f"{file}: expected an npz archive, saw: {error}") from error


def _names(archive: zipfile.ZipFile, *, file: str) -> list[str]:
    """The members of the archive, as numpy calls them. Raises DataInvalid for a name twice."""
    names = [member.removesuffix(_SUFFIX) for member in archive.namelist()]
    if len(set(names)) < len(names):
        raise DataInvalid(
            f"{file}: expected a distinct name for each array, saw {shown_names(names)}"
        )
    return names


def _member(archive: zipfile.ZipFile, name: str, *, where: str) -> IO[bytes]:
    try:
        return archive.open(name + _SUFFIX)
    except KeyError as error:
        raise DataInvalid(
            f"{where}: expected a numpy array, saw a member of another kind; "
            "name the arrays to use in `columns`"
        ) from error


def _open(content: IO[bytes], where: str) -> _Array:
    try:
        version = npy.read_magic(content)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(content, max_header_size=_HEADER_BYTES)
    except _NO_HEADER as error:
        raise DataInvalid(f"{where}: expected a numpy array, saw: {error}") from error
    if dtype.kind not in "buifU":
        raise DataInvalid(
            f"{where}: expected numbers or texts (numpy.str_), saw dtype {dtype}; convert the "
            "array, or name those to use in `columns`"
        )
    if not shape:
        raise DataInvalid(
            f"{where}: expected an array of rows, saw a single number; name the arrays to use in "
            "`columns`"
        )
    streamed = _Streamed(content, shape, dtype)
    if not is_fortran or len(shape) == 1:
        return streamed
    if streamed.bytes_per_row * shape[0] > MAX_FORTRAN_BYTES:
        raise DataInvalid(
            f"{where}: expected at most {MAX_FORTRAN_BYTES} bytes in Fortran order, which have to "
            f"fit in memory, saw {streamed.bytes_per_row * shape[0]}; store "
            "numpy.ascontiguousarray of it"
        )
    return _Held(streamed)


def _chunks(arrays: dict[str, _Array], *, file: str) -> Iterator[Chunk]:
    num_rows = _num_rows(arrays, file=file)
    step = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, _bytes_per_row(list(arrays.values())))))
    for start in range(0, num_rows, step):
        count = min(step, num_rows - start)
        columns = {
            name: _column(array.rows(count, where=f"{file}, {name!r}"))
            for name, array in arrays.items()
        }
        yield Chunk(file, start + 1, columns)


def _column(rows: NDArray[Any]) -> Column:
    """Texts as such, since numpy would read a number out of one as Python does."""
    if rows.dtype.kind != "U":
        return rows
    texts: list[str] = rows.tolist()
    return texts


def _bytes_per_row(arrays: Sequence[_Array]) -> int:
    return sum(array.bytes_per_row for array in arrays)


def _num_rows(arrays: dict[str, _Array], *, file: str) -> int:
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataInvalid(
            f"{file}: expected arrays with the same number of rows, saw {counts}; name those to "
            "use in `columns`"
        )
    return next(iter(counts.values()))
