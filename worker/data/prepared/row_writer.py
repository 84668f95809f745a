"""Chunks of rows on their way to disk: which columns make the sample, and one shape for all."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from roadless.service.contract.job.tasks import Task
from roadless.worker.data.formats.chunk import Chunk, require_columns, shown_names
from roadless.worker.data.formats.columns import labels, numbers
from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.errors import DataInvalid

INPUTS_FILE, TARGETS_FILE = "inputs.bin", "targets.bin"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What of each row makes the sample."""

    columns: tuple[str, ...] | None  #: None: every column but the targets
    image: str | None  #: column of encoded images, instead of ``columns``
    image_size: tuple[int, int] | None  #: height and width to resize images to
    targets: tuple[str, ...]
    task: Task  #: classification or regression
    num_classes: int | None  #: None: as many as the labels say

    def inputs_of(self, present: Sequence[str]) -> tuple[str, ...]:
        """The columns that are features, of those that a file has."""
        if self.image is not None:
            return (self.image,)
        if self.columns is not None:
            return self.columns
        return tuple(name for name in present if name not in self.targets)


class _Decoder(Protocol):
    def decode(self, chunk: Chunk, name: str) -> NDArray[np.uint8]:
        """Return uint8 of shape (rows, channels, height, width)."""


class RowWriter:
    """Appends rows to two files, and refuses those that are unlike the first."""

    def __init__(self, work: Path, wanted: Wanted) -> None:
        self._wanted = wanted
        self._paths = work / INPUTS_FILE, work / TARGETS_FILE
        self._files: list[BinaryIO] = []
        self._digests = hashlib.sha256(), hashlib.sha256()
        self._decoder: _Decoder | None = None
        self._names: tuple[str, ...] = ()  #: the features, as the first file has them
        self._first: tuple[np.dtype[Any], tuple[int, ...]] | None = None
        self.num_rows = 0
        self.target_width = 0  #: numbers to predict; 0 for a class
        self.highest_label = -1

    def __enter__(self) -> "RowWriter":
        self._files = [path.open("wb") for path in self._paths]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for file in self._files:
            file.close()

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """float32, or uint8 for images."""
        assert self._first is not None, "expected rows to be written"
        return self._first[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        assert self._first is not None, "expected rows to be written"
        return self._first[1]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the inputs, and of the targets, that were written."""
        return b"".join(digest.digest() for digest in self._digests)

    def choose(self, present: Sequence[str], file: str) -> tuple[str, ...]:
        """The columns to read of a file that has these; raises DataInvalid when some are absent."""
        names = self._wanted.inputs_of(present)
        require_columns((*names, *self._wanted.targets), present, file=file)
        if not names:
            raise DataInvalid(f"{file}: expected columns beside the target, saw none")
        self._names = self._names or names
        if names != self._names:
            raise DataInvalid(
                f"{file}: expected the columns {shown_names(self._names)} of the first file, "
                f"saw {shown_names(names)}"
            )
        return (*names, *self._wanted.targets)

    def write(self, chunk: Chunk) -> None:
        """Append the rows of a chunk that has the chosen columns."""
        inputs, targets = self._inputs(chunk), self._targets(chunk)
        columns = (np.ascontiguousarray(inputs).data, np.ascontiguousarray(targets).data)
        for file, digest, content in zip(self._files, self._digests, columns, strict=True):
            file.write(content)
            digest.update(content)
        self.num_rows += len(inputs)

    def _inputs(self, chunk: Chunk) -> NDArray[Any]:
        columns = [self._column(chunk, name) for name in self._names]
        if len(columns) > 1 or columns[0].ndim == 1:
            columns = [np.concatenate([one.reshape(len(one), -1) for one in columns], axis=1)]
        inputs = columns[0]
        is_image = inputs.dtype == np.uint8 and inputs.ndim > 2
        inputs = inputs if is_image else inputs.astype(np.float32, copy=False)
        seen = inputs.dtype, inputs.shape[1:]
        self._first = self._first or seen
        if seen != self._first:
            chunk.refuse(
                0,
                self._names[0],
                expected=f"{self._first[0]} of shape {self._first[1]} like the first row",
                seen=f"{seen[0]} of shape {seen[1]}",
            )
        return inputs

    def _column(self, chunk: Chunk, name: str) -> NDArray[Any]:
        if self._wanted.image is None:
            return numbers(chunk, name)
        self._decoder = self._decoder or lazy_import("formats.images").Decoder(
            self._wanted.image_size
        )
        assert self._decoder is not None
        return self._decoder.decode(chunk, name)

    def _targets(self, chunk: Chunk) -> NDArray[Any]:
        if self._wanted.task == "classification":
            return self._labels(chunk)
        columns = [numbers(chunk, name) for name in self._wanted.targets]
        targets = np.concatenate([one.reshape(len(one), -1) for one in columns], axis=1)
        self.target_width = self.target_width or targets.shape[1]
        if targets.shape[1] != self.target_width:
            expected = f"{self.target_width} numbers like the first row"
            chunk.refuse(0, self._wanted.targets[0], expected=expected, seen=str(targets.shape[1]))
        return targets.astype(np.float32, copy=False)

    def _labels(self, chunk: Chunk) -> NDArray[np.int64]:
        (name,) = self._wanted.targets
        found = labels(chunk, name)
        if self._wanted.num_classes is not None and (found >= self._wanted.num_classes).any():
            row = int(np.argmax(found >= self._wanted.num_classes))
            expected = f"a class below num_classes = {self._wanted.num_classes}"
            chunk.refuse(row, name, expected=expected, seen=str(found[row]))
        self.highest_label = max(self.highest_label, int(found.max(initial=-1)))
        return found
