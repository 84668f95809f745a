"""Rows of Parquet files, and what else comes as Arrow tables.

Imported by a rank alone: Arrow starts threads, and a fork server must have none.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from roadless.worker.data.formats.chunk import Choose, Chunk, Column
from roadless.worker.errors import DataInvalid

#: Few: encoded images make rows of 100 KB and more.
_ROWS = 1024


def read(path: Path, *, file: str, choose: Choose) -> Iterator[Chunk]:
    """Yield the chosen columns of a Parquet file. Raises DataInvalid for what is none."""
    try:
        with pq.ParquetFile(path) as content:
            names = choose(content.schema_arrow.names, file)
            batches = content.iter_batches(batch_size=_ROWS, columns=list(names))
            yield from chunks_of(batches, names=names, file=file)
    except pa.ArrowException as error:
        raise DataInvalid(f"{file}: expected a Parquet file, saw: {error}") from error


def chunks_of(
    batches: Iterator[pa.RecordBatch], *, names: Sequence[str], file: str
) -> Iterator[Chunk]:
    """Chunks of Arrow record batches that follow each other."""
    first_row = 1
    for batch in batches:
        columns = {name: _column(batch.column(name)) for name in names}
        yield Chunk(file, first_row, columns)
        first_row += batch.num_rows


def _column(values: pa.Array) -> Column:
    """The values as numpy has them; as Python objects where nulls or texts are among them."""
    if isinstance(values, pa.ExtensionArray):
        return _column(values.storage)
    if pa.types.is_dictionary(values.type):
        return _column(values.dictionary_decode())
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        return _column(pc.struct_field(values, "bytes"))  # an image, as Hugging Face stores them
    if values.null_count or not _is_numeric(values.type):
        return list(values.to_pylist())
    return _dense(values)


def _is_numeric(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_numeric(kind.value_type)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _dense(values: pa.Array) -> Column:
    """Numbers, or lists of numbers that are all of one length; others stay lists."""
    if not pa.types.is_nested(values.type):
        flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return flat
    inner = values.flatten()
    lengths = np.diff(_offsets(values))
    if len(lengths) == 0 or (lengths != lengths[0]).any() or _nulls_in(inner):
        return list(values.to_pylist())
    dense: Any = _dense(inner)
    if isinstance(dense, list):
        return list(values.to_pylist())
    stacked: NDArray[Any] = dense.reshape(len(values), int(lengths[0]), *dense.shape[1:])
    return stacked


def _offsets(values: pa.Array) -> Any:
    if pa.types.is_fixed_size_list(values.type):
        return np.arange(len(values) + 1) * values.type.list_size
    return values.offsets.to_numpy()


def _nulls_in(values: pa.Array) -> bool:
    nested = pa.types.is_nested(values.type)
    return bool(values.null_count) or (nested and _nulls_in(values.flatten()))
