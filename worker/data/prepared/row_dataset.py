"""Rows of numbers, with classes or numbers to predict: what every table and image set becomes."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from roadless.service.contract.checkpoint.manifest import MAX_DESCRIBED_INPUTS
from roadless.worker.data.base import Batch, Description, Indices
from roadless.worker.data.formats.chunk import shown_names
from roadless.worker.errors import DataInvalid


@dataclass(frozen=True)
class Normalization:
    """Inputs are served as ``(value - mean) / deviation``; both broadcast to one sample."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def applied(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the inputs, (samples, ...), as they are served.

        Numbers are subtracted in float64 and rounded to float32 once, at the end: float32 before
        it would lose what a large mean leaves of them. Bytes of images lose nothing in float32,
        which takes half the time.
        """
        if inputs.dtype == np.uint8:
            served = inputs.astype(np.float32)
            served *= (1 / self.deviation).astype(np.float32)
            served += (-self.mean * (1 / self.deviation)).astype(np.float32)
            return served
        centred = inputs.astype(np.float64)
        centred -= self.mean
        centred /= self.deviation
        return centred.astype(np.float32)


@dataclass(frozen=True)
class Table:
    """Arrays of rows, memory-mapped or not."""

    inputs: NDArray[Any]  #: (rows, ...): float32; float64 to be normalized; uint8, uint16
    targets: NDArray[Any]  #: (rows,) int64 classes or UNCOUNTED, or (rows, targets) float32
    train_rows: NDArray[np.int64]  #: numbers of the rows to train on
    eval_rows: NDArray[np.int64]  #: numbers of those held out, in data-set order
    num_classes: int  #: 0 for regression
    normalization: Normalization | None
    fingerprint: str  #: SHA-256, lower-case hexadecimal
    has_uncounted: bool  #: whether some targets are UNCOUNTED
    class_names: tuple[str, ...]  #: in order; () where they are numbers
    columns: tuple[str, ...]  #: those that the inputs are made of; () where nobody named any


def _kind(dtype: np.dtype[Any]) -> str:
    """That of the inputs as a file has them: images of each depth, or numbers."""
    return dtype.name if dtype.kind == "u" else "float32"


def _described_inputs(table: Table) -> dict[str, Any]:
    """What a model's user does to new samples, as far as a manifest has room for it."""
    dtype = table.inputs.dtype
    described: dict[str, Any] = {"white": np.iinfo(dtype).max if dtype.kind == "u" else 0}
    if len(table.columns) <= MAX_DESCRIBED_INPUTS:
        described["columns"] = table.columns
    normalization = table.normalization
    if normalization is not None and normalization.mean.size <= MAX_DESCRIBED_INPUTS:
        described["mean"] = tuple(normalization.mean.ravel().tolist())
        described["deviation"] = tuple(normalization.deviation.ravel().tolist())
    return described


class NumberRows:
    """A data set over a table. Inputs are float32; every epoch has the same rows."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.description = Description(
            input_shape=table.inputs.shape[1:],
            num_classes=table.num_classes,
            tokens_per_sample=0,
            fingerprint=table.fingerprint,
            num_targets=0 if table.num_classes else table.targets.shape[1],
            class_names=table.class_names,
            **_described_inputs(table),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns side by side in the inputs, in order; () where they have no names."""
        return self._table.columns

    @property
    def num_train(self) -> int:
        """Rows to train on."""
        return len(self._table.train_rows)

    @property
    def num_eval(self) -> int:
        """Rows held out."""
        return len(self._table.eval_rows)

    def train_batch(self, indices: Indices) -> Batch:
        """Return the rows with these global numbers."""
        return self._batch(self._table.train_rows[indices % self.num_train])

    def eval_batch(self, start: int, stop: int) -> Batch:
        """Return the held-out rows ``start`` to ``stop - 1``."""
        return self._batch(self._table.eval_rows[start:stop])

    def standardised_like(self, other: Self) -> Self:
        """Return these rows, served with the mean and deviation of the other ones.

        Raises DataInvalid where one has images and the other has numbers.
        """
        expected, seen = (_kind(rows._table.inputs.dtype) for rows in (other, self))
        if seen != expected:
            raise DataInvalid(
                f"expected inputs of {expected}, as those that set the scale, saw {seen}"
            )
        return type(self)(replace(self._table, normalization=other._table.normalization))

    def labelled_like(self, other: Self) -> Self:
        """Return these rows with classes numbered as in the other ones, by name.

        Raises DataInvalid where only one of the two has names, or the other lacks one.
        """
        expected, seen = other._table.class_names, self._table.class_names
        if seen == expected:
            return self
        if not seen or not set(seen) <= set(expected):
            raise DataInvalid(
                f"expected classes as in the model's data, {_shown_classes(expected)}, saw "
                f"{_shown_classes(seen)}; write the classes of both in the same way"
            )
        numbers = np.array([expected.index(name) for name in seen], dtype=np.int64)
        targets = numbers[self._table.targets]
        return type(self)(replace(self._table, targets=targets, class_names=expected))

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        # numpy, not torch: this runs in a thread beside training, whose cores it must not take.
        inputs, normalization = self._table.inputs[rows], self._table.normalization
        if normalization is not None:
            inputs = normalization.applied(inputs)
        return Batch(
            torch.from_numpy(inputs.astype(np.float32, copy=False)),
            torch.from_numpy(self._table.targets[rows]),
            has_uncounted=self._table.has_uncounted,
        )


def _shown_classes(names: tuple[str, ...]) -> str:
    return shown_names(names) if names else "by number"
