"""Rows of Parquet files and other Arrow tables.

Imported only by ranks: Arrow starts threads, and a fork server must have none.
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from roadless.worker.data.formats.chunk import Choose, Chunk, Column
from roadless.worker.errors import DataInvalid

#: Few: encoded images make rows of 100 KB and more.
_ROWS = 1024
_PANDAS_PERIOD = "pandas.period"
#: The second is for names of columns that are not UTF-8.
_NOT_ARROW = (pa.ArrowException, UnicodeDecodeError)


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen columns of a Parquet file. Raises DataInvalid for any other file."""
    try:
        with pq.ParquetFile(path) as content:
            names = _chosen(content.schema_arrow, choose, file=file)
            batches = content.iter_batches(batch_size=_ROWS, columns=list(names))
            yield from _chunks_of(batches, names=names, file=file)
    except _NOT_ARROW as error:
        raise DataInvalid(f"{file}: expected a Parquet file, saw: {error}") from error


def read_ipc(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen columns of an Arrow file or stream. Raises DataInvalid for any other."""
    try:
        with pa.memory_map(str(path)) as content:
            schema, batches = _opened_ipc(content)
            names = _chosen(schema, choose, file=file)
            yield from _chunks_of(_in_parts(batches), names=names, file=file)
    except _NOT_ARROW as error:
        raise DataInvalid(f"{file}: expected an Arrow file, saw: {error}") from error


def _opened_ipc(content: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    try:
        stream = pa.ipc.open_stream(content)
        return stream.schema, iter(stream)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(content)
        return reader.schema, map(reader.get_batch, range(reader.num_record_batches))


def _in_parts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows a few at a time, with every value checked: a file can claim any offsets."""
    for batch in batches:
        batch.validate(full=True)
        yield from (batch.slice(at, _ROWS) for at in range(0, batch.num_rows, _ROWS))


def open_zstd(path: Path) -> BinaryIO:
    """Open a file that zstd compressed, which Python 3.14 does by itself."""
    return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))


def _chosen(schema: pa.Schema, choose: Choose, *, file: str) -> Sequence[str]:
    """The columns to read; raises DataInvalid for one with a name or values of two meanings."""
    names = choose(schema.names, file, aside=_index_of(schema))
    _require_once(names, schema.names, file=file)
    _require_no_periods(schema, names, file=file)
    return names


def _index_of(schema: pa.Schema) -> list[str]:
    """The columns that pandas wrote as an index: row labels, not data.

    pandas (``to_parquet``) stores every index but 0, 1, 2, ... as a column, and says so here.
    """
    try:
        about = list((schema.pandas_metadata or {}).get("index_columns", []))
    except (ValueError, AttributeError, TypeError):
        return []  # not what pandas writes under that name
    return [name for name in about if isinstance(name, str)]


def _require_once(names: Sequence[str], present: Sequence[str], *, file: str) -> None:
    """Raise DataInvalid where a chosen name is that of two columns."""
    for name in names:
        if present.count(name) > 1:
            raise DataInvalid(
                f"{file}: expected one column {name!r}, saw {present.count(name)} of that name; "
                "rename them, or name other columns in `columns`"
            )


def _require_no_periods(schema: pa.Schema, names: Sequence[str], *, file: str) -> None:
    """Raise DataInvalid where a chosen column has spans of time as pandas stores them.

    They are integers to whoever has not imported pandas (3.0): years since 1970, days, quarters.
    """
    for name in names:
        field = schema.field(name)
        about = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace")
        if _PANDAS_PERIOD in (about, getattr(field.type, "extension_name", "")):
            raise DataInvalid(
                f"{file}, row 1, column {name!r}: expected numbers or texts, saw periods of time; "
                "store numbers, or name the columns to use in `columns`"
            )


def _chunks_of(
    batches: Iterator[pa.RecordBatch], *, names: Sequence[str], file: str
) -> Iterator[Chunk]:
    """Chunks of consecutive Arrow record batches."""
    first_row = 1
    for batch in batches:
        if batch.num_rows:
            columns = {name: _column(batch.column(name)) for name in names}
            yield Chunk(file, first_row, columns)
        first_row += batch.num_rows


def _column(values: pa.Array) -> Column:
    """The values as a numpy array, or as Python objects if nulls or texts are among them."""
    if isinstance(values, pa.FixedShapeTensorArray):
        return _tensors(values)
    if isinstance(values.type, pa.JsonType):
        return _of_json(values.storage)
    if isinstance(values, pa.Bool8Array):  # whose every number but 0 means true
        return _objects(values)
    if isinstance(values, pa.ExtensionArray):
        return _column(values.storage)
    if pa.types.is_dictionary(values.type):
        return _looked_up(values)
    if _is_image(values.type):
        return _encoded(values)
    if values.null_count or not _is_numeric(values.type):
        return _objects(values)
    return _dense(values)


def _looked_up(values: pa.DictionaryArray) -> Column:
    try:
        return _column(values.dictionary_decode())
    except pa.ArrowNotImplementedError:  # pyarrow 26.0 over views, in which polars stores texts
        known = [*_objects(values.dictionary), None]
        return [known[-1 if at is None else at] for at in values.indices.to_pylist()]


def _of_json(values: pa.Array) -> list[Any]:
    """Values stored as JSON: datasets 5.2.0 does so with all of a column that had one odd value.

    What that was is refused by whoever asks for texts or numbers, and the others are as they were.
    """
    return [_parsed(value) for value in _objects(values)]


def _parsed(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return _Unreadable(error)


def _is_image(kind: pa.DataType) -> bool:
    """Whether it is how Hugging Face stores an image: its content, or where that lies."""
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return at >= 0 and kind.field(at).type in (pa.binary(), pa.large_binary(), pa.binary_view())


def _encoded(values: pa.StructArray) -> list[Any]:
    """The content of each image; where there is none, what there is, for a message."""
    return [
        cell if cell is None or cell["bytes"] is None else cell["bytes"]
        for cell in values.to_pylist()
    ]


class _Unreadable:
    """In the place of a value that Python has none for: a text that is not UTF-8, year 10000."""

    def __init__(self, why: object) -> None:
        self._why = why

    def __repr__(self) -> str:
        return f"what cannot be read: {self._why}"


def _objects(values: pa.Array) -> list[Any]:
    try:
        return list(values.to_pylist())
    except (ValueError, OverflowError, LookupError):
        return [_object(value) for value in values]


def _object(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, LookupError) as error:
        return _Unreadable(error)


def _tensors(values: pa.FixedShapeTensorArray) -> Column:
    """Tensors of one shape: their storage alone has lost it, and the order of their axes.

    Axes that are swapped are swapped back. Those that go round in a circle, as from channels last
    to channels first, pyarrow 26.0 writes (``from_numpy_ndarray``) in the opposite sense of the
    format's definition, and reads (``to_numpy_ndarray``) as other numbers: nobody can say what such
    a file means.
    """
    flat, kind = _column(values.storage), values.type
    if not isinstance(flat, np.ndarray):
        return flat
    axes = np.array(kind.permutation or range(len(kind.shape)))
    if not np.array_equal(np.argsort(axes), axes):
        return [_Unreadable(f"axes in the order {axes.tolist()}, which is ambiguous")] * len(values)
    stored = flat.reshape(len(values), *kind.shape)
    return stored.transpose(0, *(axes + 1))


def _is_numeric(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_numeric(kind.value_type)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _dense(values: pa.Array) -> Column:
    """Numbers, or lists of numbers of equal length, as an array; others stay lists."""
    if not pa.types.is_nested(values.type):
        flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return flat
    inner = values.flatten()
    lengths = np.diff(_offsets(values))
    if len(lengths) == 0 or (lengths != lengths[0]).any() or _nulls_in(inner):
        return _objects(values)
    dense: Any = _dense(inner)
    if isinstance(dense, list):
        return _objects(values)
    stacked: NDArray[Any] = dense.reshape(len(values), int(lengths[0]), *dense.shape[1:])
    return stacked


def _offsets(values: pa.Array) -> Any:
    if pa.types.is_fixed_size_list(values.type):
        return np.arange(len(values) + 1) * values.type.list_size
    return values.offsets.to_numpy()


def _nulls_in(values: pa.Array) -> bool:
    nested = pa.types.is_nested(values.type)
    return bool(values.null_count) or (nested and _nulls_in(values.flatten()))
