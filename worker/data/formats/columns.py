"""From the values of a column to numbers, labels, texts or images; a bad one is named."""

import contextlib
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from roadless.worker.data.formats.chunk import Chunk, Column, shown

#: Above every label that a specification can name, and exact as a float.
_HIGHEST_LABEL = 2**31


def numbers(chunk: Chunk, name: str) -> NDArray[np.float32] | NDArray[np.uint8]:
    """Return the column as finite float32 of shape (rows, ...); uint8 arrays stay as they are.

    Raises DataInvalid for the first row that is no number, not finite, or of another shape.
    """
    values = chunk.columns[name]
    if isinstance(values, np.ndarray) and values.dtype == np.uint8:
        return values
    try:
        wide = _wide(values)
    except (ValueError, TypeError):
        _refuse_first_unlike(chunk, name)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    _require_finite(chunk, name, narrow)
    return narrow


def labels(chunk: Chunk, name: str) -> NDArray[np.int64]:
    """Return the column as class numbers from 0. Raises DataInvalid for the first that is none."""
    values = chunk.columns[name]
    try:
        wide = _wide(values)
    except (ValueError, TypeError):
        _refuse_first_unlike(chunk, name, expected="a class number")
    is_label = (wide >= 0) & (wide < _HIGHEST_LABEL) & (wide == np.floor(wide))
    if wide.ndim != 1 or not is_label.all():
        row = 0 if wide.ndim != 1 else int(np.argmin(is_label))
        chunk.refuse(row, name, expected="a class number from 0", seen=shown(values[row]))
    return wide.astype(np.int64)


def texts(chunk: Chunk, name: str) -> list[bytes]:
    """Return the column as UTF-8. Raises DataInvalid for the first row that is no text."""
    return [_text(chunk, name, row, value) for row, value in enumerate(chunk.columns[name])]


def _wide(values: Column) -> NDArray[np.float64]:
    if not isinstance(values, np.ndarray):
        # Three times as fast for texts and plain numbers as numpy's own way, which lists need.
        with contextlib.suppress(TypeError):
            return np.fromiter(map(float, values), dtype=np.float64, count=len(values))
    return np.asarray(values, dtype=np.float64)


def _text(chunk: Chunk, name: str, row: int, value: Any) -> bytes:
    if not isinstance(value, str):
        chunk.refuse(row, name, expected="a text", seen=shown(value))
    try:
        return value.encode()
    except UnicodeEncodeError:
        chunk.refuse(row, name, expected="a text that UTF-8 can say", seen=shown(value))


def _require_finite(chunk: Chunk, name: str, values: NDArray[np.float32]) -> None:
    is_finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        chunk.refuse(row, name, expected="a finite float32", seen=shown(chunk.columns[name][row]))


def _refuse_first_unlike(chunk: Chunk, name: str, *, expected: str = "a number") -> NoReturn:
    """Find the row that kept the column from becoming an array."""
    shape: tuple[int, ...] | None = None
    for row, value in enumerate(chunk.columns[name]):
        try:
            seen = np.asarray(value, dtype=np.float64).shape
        except (ValueError, TypeError):
            chunk.refuse(row, name, expected=expected, seen=shown(value))
        if shape not in (None, seen):
            chunk.refuse(row, name, expected=f"the shape {shape} of the first row", seen=str(seen))
        shape = seen
    raise AssertionError(f"expected a bad value in column {name!r} of {chunk.file}")
