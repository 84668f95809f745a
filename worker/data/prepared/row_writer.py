"""Writes chunks of rows to disk: selects the columns of a sample, and requires one shape."""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from roadless.service.contract.job.tasks import Task
from roadless.worker.data.formats.chunk import Chunk, require_columns, shown, shown_names
from roadless.worker.data.formats.columns import has_booleans, numbers
from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.data.prepared.row_labels import RowLabels
from roadless.worker.data.prepared.row_numbers import RowNumbers
from roadless.worker.data.prepared.spread import Spread
from roadless.worker.errors import DataInvalid

INPUTS_FILE, TARGETS_FILE = "inputs.bin", "targets.bin"

_SORTED_AT_ONCE = 2**20
_INDEX_NAME = re.compile(r"__index_level_[0-9]+__|Unnamed: [0-9]+(\.[0-9]+)*")
_CHANNELS = (1, 3, 4)  # of images: grey, RGB, and RGB with alpha
_NAMES_WAY_OUT = "name those to use in `columns`, or write the same columns in every row and file"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which parts of a row make up the sample."""

    columns: tuple[str, ...] | None  #: None: every column but the targets
    image: str | None  #: column of encoded images, instead of ``columns``
    image_size: tuple[int, int] | None  #: height and width to resize images to
    image_channels: int | None  #: 1 or 3; None: as the first image has
    targets: tuple[str, ...]
    task: Task  #: classification or regression
    num_classes: int | None  #: None: as many as the labels say

    @property
    def takes_all(self) -> bool:
        """Whether no feature is named, so that every column but the targets is one."""
        return self.image is None and self.columns is None

    def inputs_of(self, present: Sequence[str], *, aside: Collection[str]) -> tuple[str, ...]:
        """The feature columns among those that a file has; see :class:`Choose`."""
        if self.image is not None:
            return (self.image,)
        if self.columns is not None:
            return self.columns
        apart = {*self.targets, *aside}
        return tuple(name for name in present if name not in apart and not is_index(name))


def is_index(name: str) -> bool:
    """Whether only an index is called so.

    pandas writes ``__index_level_0__`` into Parquet, and reads the nameless first column of its own
    CSV files as ``Unnamed: 0``, which goes on as a name when they are written again.
    """
    return _INDEX_NAME.fullmatch(name) is not None


class _Decoder(Protocol):
    def decode(self, chunk: Chunk, name: str) -> NDArray[Any]:
        """Return uint8 or uint16 of shape (rows, channels, height, width)."""


class RowWriter:
    """Appends rows to two files, and refuses those that are unlike the first.

    ``keeps_float64``: numbers are stored as they are, since their means are subtracted later; else
    they are rounded to float32, which must still tell the values of a column apart.
    """

    def __init__(self, work: Path, wanted: Wanted, *, keeps_float64: bool) -> None:
        self._wanted = wanted
        self._float = np.dtype(np.float64 if keeps_float64 else np.float32)
        self._paths = work / INPUTS_FILE, work / TARGETS_FILE
        self._files: list[BinaryIO] = []
        self._digests = hashlib.sha256(), hashlib.sha256()
        self._decoder: _Decoder | None = None
        self._names: tuple[str, ...] = ()  #: the features, as the first file has them
        self._first: tuple[np.dtype[Any], tuple[int, ...]] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}  #: of a row of each column
        self._kinds: dict[str, tuple[str, bool]] = {}  #: the file, and whether it has truth values
        self._spread = Spread()
        self.row_numbers = RowNumbers()  #: watches the features if nobody named any
        self.labels = RowLabels(wanted.num_classes)  #: has none for a regression
        self.num_rows = 0
        self.target_width = 0  #: numbers to predict; 0 for a class
        #: Columns that are no features because nobody named any, and they look like an index.
        self.left_out: list[str] = []
        #: The shape of images that came as (height, width, channels).
        self.turned_from: tuple[int, ...] | None = None

    def __enter__(self) -> "RowWriter":
        self._files = [path.open("wb") for path in self._paths]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for file in self._files:
            file.close()

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """float32 or float64, or uint8 or uint16 for images."""
        assert self._first is not None, "expected rows to be written"
        return self._first[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        assert self._first is not None, "expected rows to be written"
        return self._first[1]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The columns side by side in the inputs; () for images."""
        return () if self._wanted.image is not None else self._names

    @property
    def digest(self) -> bytes:
        """SHA-256 of the inputs written, followed by that of the targets."""
        return b"".join(digest.digest() for digest in self._digests)

    def choose(
        self, present: Sequence[str], where: str, *, aside: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Return the columns to read, in the order of the first file; see :class:`Choose`."""
        names = self._wanted.inputs_of(present, aside=aside)
        require_columns((*names, *self._wanted.targets), present, file=where)
        if not names:
            raise DataInvalid(f"{where}: expected columns beside the target, saw none")
        if "" in names:
            raise DataInvalid(
                f"{where}: expected a name for each column, saw {shown_names(present)}; "
                "name those to use in `columns`"
            )
        if not self._names:
            self._names = names
            self.left_out = self._left_out(present, aside)
        if set(names) != set(self._names):
            self._refuse_columns(names, where)
        return (*self._names, *self._wanted.targets)

    def _left_out(self, present: Sequence[str], aside: Collection[str]) -> list[str]:
        if not self._wanted.takes_all:
            return []
        others = (name for name in present if is_index(name) and name not in aside)
        return [name for name in (*aside, *others) if name not in self._wanted.targets]

    def _refuse_columns(self, names: Sequence[str], where: str) -> NoReturn:
        added = [name for name in names if name not in self._names]
        absent = [name for name in self._names if name not in names]
        difference = f"{shown_names(added)} beside them" if added else f"no {shown_names(absent)}"
        raise DataInvalid(
            f"{where}: expected the columns {shown_names(self._names)} of the first file and its "
            f"first row, saw {difference}; {_NAMES_WAY_OUT}"
        )

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
        for name, column in zip(self._names, columns, strict=True):
            self._require_shape(chunk, name, column)
            if self._wanted.takes_all:
                self.row_numbers.add(name, column, row_of_file=chunk.first_row - 1)
            if self._float == np.float32:
                self._spread.add(name, column)
        if len(columns) > 1 or columns[0].ndim == 1:
            columns = [np.concatenate([one.reshape(len(one), -1) for one in columns], axis=1)]
        inputs = columns[0]
        if self._wanted.image is None and _is_channels_last(inputs):
            self.turned_from = inputs.shape[1:]
            inputs = np.moveaxis(inputs, -1, 1)
        inputs = inputs if _is_image(inputs) else inputs.astype(self._float, copy=False)
        self._first = self._first or (inputs.dtype, inputs.shape[1:])
        if inputs.dtype != self._first[0]:
            self._refuse_shape(chunk, self._names[0], columns[0], shape=self._first[1])
        return inputs

    def _require_shape(self, chunk: Chunk, name: str, column: NDArray[Any]) -> None:
        """Of each column: two that are longer and shorter would still fill a row."""
        shape = self._shapes.setdefault(name, column.shape[1:])
        if column.shape[1:] != shape:
            self._refuse_shape(chunk, name, column, shape=shape)

    def _refuse_shape(
        self, chunk: Chunk, name: str, column: NDArray[Any], *, shape: tuple[int, ...]
    ) -> NoReturn:
        expected = self._first[0] if self._first else self._float
        seen = column.dtype if _is_image(column) else self._float
        chunk.refuse(
            0,
            name,
            expected=f"{expected} of shape {shape} like the first row",
            seen=f"{seen} of shape {column.shape[1:]}",
        )

    def _column(self, chunk: Chunk, name: str) -> NDArray[Any]:
        if self._wanted.image is None:
            self._require_one_kind(chunk, name)
            return numbers(chunk, name)
        self._decoder = self._decoder or lazy_import("formats.images").Decoder(
            self._wanted.image_size, self._wanted.image_channels
        )
        assert self._decoder is not None
        return self._decoder.decode(chunk, name)

    def _require_one_kind(self, chunk: Chunk, name: str) -> None:
        """A column of CSV has truth values or numbers from its first row to its last."""
        kind = chunk.file, has_booleans(chunk, name)
        before = self._kinds.get(name, kind)
        if before[0] == kind[0] and before != kind:
            expected = "true or false" if before[1] else "a number"
            seen = shown(chunk.columns[name][0])
            chunk.refuse(0, name, expected=f"{expected} like the rows before", seen=seen)
        self._kinds[name] = kind

    def _targets(self, chunk: Chunk) -> NDArray[Any]:
        if self._wanted.task == "classification":
            (name,) = self._wanted.targets
            return self.labels.of(chunk, name)
        columns = [numbers(chunk, name) for name in self._wanted.targets]
        for name, column in zip(self._wanted.targets, columns, strict=True):
            self._require_shape(chunk, name, column)
            self._spread.add(name, column)
        targets = np.concatenate([one.reshape(len(one), -1) for one in columns], axis=1)
        self.target_width = targets.shape[1]
        return targets.astype(np.float32, copy=False)

    def sort_classes(self) -> None:
        """Number named classes by the order of their names, which no order of rows changes."""
        if not self.labels.class_names:
            return
        sorted_numbers, digest = self.labels.sorted_numbers(), hashlib.sha256()
        targets = np.memmap(self._paths[1], dtype=np.int64, mode="r+")
        for start in range(0, len(targets), _SORTED_AT_ONCE):
            block = slice(start, start + _SORTED_AT_ONCE)
            targets[block] = sorted_numbers[targets[block]]
            digest.update(targets[block].data)
        targets.flush()
        self._digests = self._digests[0], digest

    def require_told_apart(self, name: str) -> None:
        """Raise DataInvalid where float32 makes the values of a column equal, or nearly so.

        ``name``: of all records, in messages.
        """
        lost = self._spread.first_lost()
        if lost is None:
            return
        way_out = (
            "subtract a constant from it"
            if lost.name in self._wanted.targets
            else "set `standardise`, which subtracts the mean before it rounds, or subtract a "
            "constant from it"
        )
        raise DataInvalid(
            f"{name}, rows 1 to {self.num_rows}, column {lost.name!r}: expected numbers that "
            f"float32 tells apart, saw {lost.least!r} to {lost.greatest!r}; {way_out}"
        )


def _is_channels_last(values: NDArray[Any]) -> bool:
    """Whether these are images as (height, width, channels), and cannot be meant otherwise.

    Pillow, matplotlib and Keras give them so; a model would see as many channels as rows of pixels.
    """
    if values.dtype != np.uint8 or values.ndim != 4:
        return False
    first, last = values.shape[1], values.shape[-1]
    return last in _CHANNELS and first > max(_CHANNELS)


def _is_image(values: NDArray[Any]) -> bool:
    return values.dtype in (np.uint8, np.uint16) and values.ndim > 2
