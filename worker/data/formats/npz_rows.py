"""Rows of an npz file: numpy arrays side by side, whose first axis counts the rows.

Arrays are read from the archive as a stream, a few rows at a time; nothing is unpickled.
"""

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from roadless.worker.data.formats.chunk import CHUNK_BYTES, CHUNK_ROWS, Choose, Chunk
from roadless.worker.errors import DataInvalid

_SUFFIX = ".npy"
_HEADER_BYTES = 65536


@dataclass(frozen=True)
class _Array:
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


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen arrays, all of as many rows. Raises DataInvalid for what is no such file."""
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            present = [name.removesuffix(_SUFFIX) for name in archive.namelist()]
            arrays = {
                name: _open(stack.enter_context(archive.open(name + _SUFFIX)), f"{file}, {name!r}")
                for name in choose(present, file)
            }
            yield from _chunks(arrays, file=file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataInvalid(f"{file}: expected an npz archive, saw: {error}") from error


def _open(content: IO[bytes], where: str) -> _Array:
    try:
        version = npy.read_magic(content)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(content, max_header_size=_HEADER_BYTES)
    except ValueError as error:
        raise DataInvalid(f"{where}: expected a numpy array, saw: {error}") from error
    if dtype.kind not in "buif":
        raise DataInvalid(f"{where}: expected numbers, saw dtype {dtype}")
    if not shape or (is_fortran and len(shape) > 1):
        order = " in Fortran order" if shape else ""
        raise DataInvalid(f"{where}: expected rows in C order, saw shape {shape}{order}")
    return _Array(content, shape, dtype)


def _chunks(arrays: dict[str, _Array], *, file: str) -> Iterator[Chunk]:
    num_rows = _num_rows(arrays, file=file)
    step = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, _bytes_per_row(list(arrays.values())))))
    for start in range(0, num_rows, step):
        count = min(step, num_rows - start)
        columns = {
            name: array.rows(count, where=f"{file}, {name!r}") for name, array in arrays.items()
        }
        yield Chunk(file, start + 1, columns)


def _bytes_per_row(arrays: Sequence[_Array]) -> int:
    return sum(array.bytes_per_row for array in arrays)


def _num_rows(arrays: dict[str, _Array], *, file: str) -> int:
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataInvalid(f"{file}: expected arrays with the same number of rows, saw {counts}")
    return next(iter(counts.values()))
