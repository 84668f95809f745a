"""Means and standard deviations of rows that need not fit in memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadless.worker.data.prepared.row_dataset import Normalization
from roadless.worker.data.progress import Tell

_BLOCK_BYTES = 32 * 2**20
#: Bytes of decoded images go from 0..255 to [-1, 1].
_IMAGE_SCALE, _IMAGE_SHIFT = 2 / 255, -1.0


def _to_nobody(text: str) -> None:
    """Report nothing."""


def of_images(sample_shape: tuple[int, ...]) -> Normalization:
    """Return what brings the bytes of images of this shape to [-1, 1]."""
    ones = np.ones(_broadcast_shape(sample_shape), dtype=np.float32)
    return Normalization(ones * np.float32(_IMAGE_SCALE), ones * np.float32(_IMAGE_SHIFT))


def of_rows(
    inputs: NDArray[Any], rows: NDArray[np.int64], *, tell: Tell = _to_nobody
) -> Normalization:
    """Return what gives these rows mean 0 and deviation 1: each column, of images each channel.

    ``inputs``: (rows, ...), mapped from disk. A column that never changes is only shifted. ``tell``
    hears now and then that it goes on.
    """
    shape = _broadcast_shape(inputs.shape[1:])
    count = len(rows) * (np.prod(inputs.shape[1:]) / np.prod(shape))
    mean = sum(_sum(block, shape) for block in _blocks(inputs, rows, tell)) / count
    squares = sum(_sum((block - mean) ** 2, shape) for block in _blocks(inputs, rows, tell))
    deviation = np.sqrt(squares / count)
    scale = 1.0 / np.where(deviation > 0, deviation, 1.0)
    return Normalization(scale.astype(np.float32), (-mean * scale).astype(np.float32))


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


def _sum(block: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    axes = (0, *(axis + 1 for axis, size in enumerate(block.shape[1:]) if size != shape[axis]))
    total: NDArray[np.float64] = block.sum(axis=axes).reshape(shape)
    return total
