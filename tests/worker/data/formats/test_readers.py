"""The law of every format: a value is what an independent reader gives, or its row is refused.

The readers are pyarrow's for CSV and Parquet, Python's json and numpy's load. A refusal names file,
row and column, and hits only what is no finite number that float64 holds.
"""

import csv
import datetime
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from roadless.worker.data.formats import arrow_rows, csv_rows, jsonl_rows, npz_rows
from roadless.worker.data.formats.chunk import Chunk
from roadless.worker.data.formats.columns import labels, numbers, texts
from roadless.worker.errors import DataInvalid

law = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def everything(present: Sequence[str], where: str, *, aside: Any = ()) -> Sequence[str]:
    return list(present)


def only(name: str) -> Callable[..., Sequence[str]]:
    return lambda present, where, *, aside=(): [name]


LARGEST = float(np.finfo(np.float32).max)


def is_number(value: Any) -> bool:
    """Whether a column of such values is finite numbers that float64 holds."""
    if not isinstance(value, int | float | Decimal):
        return False
    if value != value or abs(value) > LARGEST:
        return False
    is_whole = isinstance(value, int) or (isinstance(value, Decimal) and value == int(value))
    return not is_whole or float(value) == value


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Of a number or of nested lists of numbers; None for anything else, and for no number."""
    if not isinstance(value, list):
        return () if is_number(value) else None
    shapes = {shape_of(one) for one in value}
    if len(shapes) != 1 or None in shapes:
        return None
    return (len(value), *shapes.pop())


def same(read: Any, value: Any) -> bool:
    if isinstance(value, list):
        return len(read) == len(value) and all(map(same, read, value))
    if isinstance(value, float):
        return read == value and math.copysign(1, read) == math.copysign(1, value)
    return read == (float(value) if isinstance(value, Decimal) else value)


def require_law(chunks: Callable[[], Iterator[Chunk]], expected: Sequence[Any]) -> None:
    """Column x is as expected, or the first row that is unlike a number is refused by name."""
    try:
        read = [row for chunk in chunks() for row in numbers(chunk, "x").tolist()]
    except DataInvalid as error:
        at = re.match(r"(?s)the file, row (\d+), column 'x': expected .*, saw .*", str(error))
        assert at, str(error)  # noqa: PT017 - a refusal is one of two outcomes
        bad, first = expected[int(at[1]) - 1], expected[0]
        is_mixed = isinstance(bad, bool) != isinstance(first, bool)
        assert is_mixed or shape_of(bad) is None or shape_of(bad) != shape_of(first)
        return
    assert len(read) == len(expected)
    assert all(map(same, read, expected))


# ---- csv ----------------------------------------------------------------------------------------

odd_numbers = st.sampled_from(
    [
        *("2021_05", "1_0", "١٢", "٣.5", "1,000", "1;5", "0x10", "1f", "1d5", "1e", "1e+", "--1"),
        *("1e400", "-1e400", "1e-400", "4.9e-324", "3.5e38", "infinity", "-inf", "NaN", "nan"),
        *("1.", ".5", "+1", "-0", "007", "1e5", "1E+05", "+", ".", "$5", "5%"),
        *("9007199254740993", "9007199254740992", "18446744073709551615", "1" * 30),
        *("true", "True", "yes", "2021-05-01", "12:30", "NA", "null", "#N/A"),
    ]
)
written = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.text("0123456789+-.eE_ \t", max_size=8),
    odd_numbers,
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=5),
)


def pyarrows(text: str) -> Any:
    """The value that pyarrow infers for a field.

    But that "0x10" is 16, and whole numbers past 64 bits are rounded, is its own alone.
    """
    if "x" in text.lower() or re.fullmatch(r"[ \t]*[+-]?[0-9]{18,}[ \t]*", text):
        return text if "x" in text.lower() else int(text)
    content = io.StringIO()
    csv.writer(content, quoting=csv.QUOTE_ALL).writerows([["x"], [text]])
    options = pa_csv.ParseOptions(newlines_in_values=True)
    table = pa_csv.read_csv(io.BytesIO(content.getvalue().encode()), parse_options=options)
    (value,) = table["x"].to_pylist()
    return value


@law
@given(st.lists(written, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
@example(["1", "2021_05"], "\n", False)
@example(["9007199254740993"], "\n", True)
@example(["1", "true"], "\n", False)
@example(["True", "false"], "\n", False)
@example(["True", "0"], "\n", False)
def test_a_number_in_csv_is_one_to_pyarrow_and_the_same(folder, cells, line_end, has_mark):
    content = io.StringIO()
    writer = csv.writer(content, lineterminator=line_end)
    writer.writerows([["x", "y"], *([cell, "0"] for cell in cells)])
    mark = b"\xef\xbb\xbf" if has_mark else b""
    (folder / "a.csv").write_bytes(mark + content.getvalue().encode())
    expected = list(map(pyarrows, cells))

    def chunks() -> Iterator[Chunk]:
        return csv_rows.read(folder / "a.csv", file="the file", choose=everything, delimiter=",")

    require_law(chunks, expected)


fields = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@law
@given(st.lists(st.tuples(fields, fields), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_texts_in_csv_are_those_that_pyarrow_reads(folder, rows, delimiter):
    content = io.StringIO()
    writer = csv.writer(content, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["x", "t"], *rows])
    (folder / "a.csv").write_bytes(content.getvalue().encode())
    table = pa_csv.read_csv(
        folder / "a.csv",
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types={"x": pa.string(), "t": pa.string()}, strings_can_be_null=False
        ),
    )
    (chunk,) = csv_rows.read(
        folder / "a.csv", file="the file", choose=everything, delimiter=delimiter
    )
    for name in ("x", "t"):
        assert list(chunk.columns[name]) == table[name].to_pylist()
        assert texts(chunk, name) == [value.encode() for value in table[name].to_pylist()]


# ---- jsonl --------------------------------------------------------------------------------------

json_numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.sampled_from([2**53, 2**53 + 1, -0.0, 5e-324, 3.5e38, 10**400, True]),
)
json_values = st.recursive(
    st.one_of(json_numbers, st.none(), st.text(max_size=3), st.sampled_from(["1", "2021_05"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)
json_columns = st.one_of(
    st.lists(json_numbers, min_size=1, max_size=6),
    st.lists(
        st.lists(st.floats(width=32) | st.integers(-9, 9), min_size=2, max_size=2), min_size=1
    ),
    st.lists(json_values, min_size=1, max_size=6),
)


@law
@given(json_columns, st.sampled_from(["\n", "\r\n", " \n"]), st.integers(0, 3))
@example([1, 10**400], "\n", 0)
@example([[1.0, 2.0], [1.0, 2.0, 3.0]], "\n", 0)
def test_a_value_in_jsonl_is_the_one_that_json_loads(folder, values, line_end, num_blank):
    lines = [json.dumps({"y": 0, "x": value}) for value in values]
    (folder / "a.jsonl").write_bytes((line_end.join(lines) + line_end * num_blank).encode())

    def chunks() -> Iterator[Chunk]:
        return jsonl_rows.read(folder / "a.jsonl", file="the file", choose=everything)

    require_law(chunks, [json.loads(line)["x"] for line in lines])


# ---- parquet ------------------------------------------------------------------------------------

arrow_types = st.sampled_from(
    [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
        *(pa.decimal128(38, 0), pa.decimal128(20, 5), pa.decimal256(60, 30)),
        *(pa.string(), pa.large_string(), pa.binary(), pa.null()),
        *(pa.date32(), pa.timestamp("us"), pa.timestamp("ns", tz="UTC"), pa.duration("s")),
        *(pa.time32("s"), pa.struct([("a", pa.int64())])),
    ]
)


def of_type(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_integer(kind):
        low = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
        high = 2**kind.bit_width - 1 + low
        return st.integers(low, high) | st.integers(0, 100)
    if pa.types.is_floating(kind):
        return st.floats(width=kind.bit_width)
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_decimal(kind):
        largest = Decimal(10) ** (kind.precision - kind.scale - 1)
        return st.decimals(-largest, largest, places=kind.scale)
    return st.sampled_from(ODD_VALUES[str(kind)])


NOON = datetime.datetime(2024, 5, 1, 12)
ODD_VALUES: dict[str, list[Any]] = {
    "string": ["1", "2021_05", ""],
    "large_string": ["1.5", "x"],
    "binary": [b"1", b"\xff"],
    "null": [None],
    "date32[day]": [NOON.date()],
    "timestamp[us]": [NOON],
    "timestamp[ns, tz=UTC]": [NOON.astimezone(datetime.UTC)],
    "duration[s]": [datetime.timedelta(seconds=5)],
    "time32[s]": [datetime.time(12, 30)],
    "struct<a: int64>": [{"a": 1}],
}


@st.composite
def arrow_columns(draw: Any) -> pa.Array:
    kind = draw(arrow_types)
    width = draw(st.sampled_from([0, 0, 0, 2]))
    values = of_type(kind)
    cells = st.lists(values, min_size=width, max_size=width) if width else values
    column = draw(st.lists(cells if draw(st.booleans()) else cells | st.none(), min_size=1))
    types = [pa.list_(kind), pa.large_list(kind), pa.list_(kind, width)] if width else [kind]
    array = pa.array(column, draw(st.sampled_from(types)))
    is_encoded = not width and draw(st.booleans()) and not pa.types.is_nested(kind)
    assume(not (is_encoded and pa.types.is_null(kind)))
    return array.dictionary_encode() if is_encoded else array


@law
@given(arrow_columns(), st.integers(1, 5))
@example(pa.array([2**64 - 1, 0], pa.uint64()), 5)
@example(pa.array([2**53 + 1], pa.int64()), 5)
def test_a_value_in_parquet_is_the_one_that_pyarrow_reads(folder, column, rows_per_group):
    table = pa.table({"y": pa.array([0] * len(column)), "x": column})
    try:
        pq.write_table(table, folder / "a.parquet", row_group_size=rows_per_group)
    except pa.ArrowNotImplementedError:
        assume(False)

    def chunks() -> Iterator[Chunk]:
        return arrow_rows.read(folder / "a.parquet", file="the file", choose=everything)

    require_law(chunks, pq.read_table(folder / "a.parquet")["x"].to_pylist())


@law
@given(st.data(), st.permutations([0, 1, 2]), st.integers(1, 1500))
def test_tensors_in_parquet_keep_their_shape_and_the_order_of_their_axes(
    folder, data, axes, num_rows
):
    shape = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    stored = np.arange(num_rows * math.prod(shape), dtype=np.float32).reshape(num_rows, *shape)
    kind = pa.fixed_shape_tensor(pa.float32(), shape, permutation=axes)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), math.prod(shape))
    table = pa.table({"x": pa.ExtensionArray.from_storage(kind, flat)})
    pq.write_table(table, folder / "a.parquet")
    chunks = arrow_rows.read(folder / "a.parquet", file="the file", choose=everything)
    if any(axes[axes[axis]] != axis for axis in range(3)):
        with pytest.raises(DataInvalid, match=r"row 1, column 'x': .* which is ambiguous"):
            [numbers(chunk, "x") for chunk in chunks]
        return
    read = np.concatenate([numbers(chunk, "x") for chunk in chunks])
    assert np.array_equal(read, stored.transpose(0, *(axis + 1 for axis in axes)))


# ---- npz ----------------------------------------------------------------------------------------

dtypes = st.sampled_from(
    ["?", "i1", "u1", "<i2", ">i4", "<i8", ">u8", "<f2", "<f4", ">f8", "<u2", "<u4"]
)


@st.composite
def numpy_columns(draw: Any) -> np.ndarray:
    shape = (draw(st.integers(1, 5)), *draw(st.lists(st.integers(1, 3), max_size=3)))
    dtype = np.dtype(draw(dtypes))
    content = draw(st.binary(min_size=math.prod(shape) * 8, max_size=math.prod(shape) * 8))
    flat = np.frombuffer(content[: math.prod(shape) * dtype.itemsize], dtype)
    flat = flat.view("u1") % 2 == 1 if dtype.kind == "b" else flat
    few = draw(st.booleans())  # small numbers, of which none is refused
    flat = np.arange(len(flat)).astype(dtype) if few else flat
    return flat.reshape(shape, order=draw(st.sampled_from("CF")))


@law
@given(numpy_columns(), st.booleans(), st.integers(1, 3))
@example(np.array([2**53 + 1]), False, 3)
@example(np.asfortranarray(np.arange(6.0).reshape(3, 2)), True, 1)
def test_an_array_in_npz_is_the_one_that_numpy_loads(folder, column, is_packed, rows_at_once):
    save = np.savez_compressed if is_packed else np.savez
    save(folder / "a.npz", x=column, y=np.zeros(len(column)))

    def chunks() -> Iterator[Chunk]:
        return npz_rows.read(folder / "a.npz", file="the file", choose=everything)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz_rows, "CHUNK_ROWS", rows_at_once)
        require_law(chunks, np.load(folder / "a.npz")["x"].tolist())


# ---- labels -------------------------------------------------------------------------------------


@law
@given(
    st.lists(st.sampled_from([0, 1, 2, 255, 256, 2**31 - 1, -100]), min_size=1),
    st.sampled_from([str, float, int, lambda label: f"{label}.0", lambda label: f" {label}"]),
)
def test_a_label_is_one_number_however_it_is_written(values, written_as):
    chunk = Chunk("the file", 1, {"y": [written_as(value) for value in values]})
    assert labels(chunk, "y").tolist() == values


@pytest.mark.parametrize("dtype", ["u1", "i1", "?", "<f2", ">i8", "<u8"])
def test_labels_of_every_width_are_the_numbers_that_they_hold(dtype):
    values = np.array([0, 1, 127, 200] if dtype != "i1" else [0, 1, 127, -100]).astype(dtype)
    chunk = Chunk("the file", 1, {"y": values})
    assert labels(chunk, "y").tolist() == values.astype(np.int64).tolist()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "1_0",
        "٣",
        "nan",
        "-1",
        "1.5",
        "2147483648",
        "no",
        None,
        [0],
        float("nan"),
        -101,
        10**400,
    ],
)
def test_what_is_no_label_is_refused_with_what_marks_a_row_that_does_not_count(bad):
    chunk = Chunk("the file", 7, {"y": [type(bad)(0) if bad not in (None, [0]) else 0, bad]})
    with pytest.raises(DataInvalid) as caught:
        labels(chunk, "y")
    assert "the file, row 8, column 'y': expected " in str(caught.value)
