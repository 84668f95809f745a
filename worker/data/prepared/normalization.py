"""Means and standard deviations of rows that need not fit in memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadless.worker.data.prepared.row_dataset import Normalization
from roadless.worker.data.progress import Tell

_BLOCK_BYTES = 32 * 2**20


def _to_nobody(text: str) -> None:
    """Report nothing."""


def of_images(sample_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Normalization:
    """Return the normalization that maps images of this shape to [-1, 1].

    ``dtype``: uint8 or uint16; from 0 to the highest number it has.
    """
    middle = np.full(_broadcast_shape(sample_shape), np.iinfo(dtype).max / 2)
    return Normalization(mean=middle, deviation=middle)


def of_rows(
    inputs: NDArray[Any], rows: NDArray[np.int64], *, tell: Tell = _to_nobody
) -> Normalization:
    """Return what normalizes each column, or channel of images, to mean 0 and deviation 1.

    ``inputs``: (rows, ...), mapped from disk. A constant column is only shifted. ``tell`` is called
    periodically as a sign of progress.

    Sums are taken of differences to the first row, and squares of them in units of the largest: a
    column of 1e9 + small, or one of 1e-200, keeps every digit, and a constant one its exact mean.
    """
    shape = _broadcast_shape(inputs.shape[1:])
    count = len(rows) * (np.prod(inputs.shape[1:]) / np.prod(shape))
    first = _first_of(inputs[rows[0]], shape)
    total, reach = np.zeros(shape), np.zeros(shape)
    for block in _blocks(inputs, rows, tell):
        block -= first
        total += _reduced(np.add, block, shape)
        reach = np.maximum(reach, _reduced(np.maximum, np.abs(block), shape))
    mean = first + total / count
    unit = np.where(reach > 0, reach, 1.0)
    squares = sum(
        _reduced(np.add, ((block - mean) / unit) ** 2, shape)
        for block in _blocks(inputs, rows, tell)
    )
    deviation = unit * np.sqrt(squares / count)
    return Normalization(mean, np.where((reach > 0) & (deviation > 0), deviation, 1.0))


def _broadcast_shape(sample_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(sample_shape) == 1:
        return sample_shape
    return (sample_shape[0], *(1 for _ in sample_shape[1:]))


def _blocks(
    inputs: NDArray[Any], rows: NDArray[np.int64], tell: Tell
) -> Iterator[NDArray[np.float64]]:
    step = max(1, _BLOCK_BYTES // max(1, int(np.prod(inputs.shape[1:])) * 8))
    for start in range(0, len(rows), step):
        tell(f"means of {len(rows)} rows are taken")
        yield inputs[rows[start : start + step]].astype(np.float64)


def _first_of(sample: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The first number of each column or channel."""
    part = tuple(slice(size) for size in shape)
    first: NDArray[np.float64] = sample[part].astype(np.float64)
    return first


def _reduced(
    function: np.ufunc, block: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """The sum or the maximum over the rows, and of images over the pixels."""
    axes = (0, *(axis + 1 for axis, size in enumerate(block.shape[1:]) if size != shape[axis]))
    found: NDArray[np.float64] = function.reduce(block, axis=axes).reshape(shape)
    return found
