"""Formats: the same rows from each, and the file, the row and the column of what is wrong."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import Node, all_rows, csv_text, jsonl_text, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roadless.service.contract.states import Reason
from roadless.worker.data.formats.chunk import CHUNK_ROWS
from roadless.worker.errors import JobFailed

TABLES = ("csv", "jsonl", "npz", "parquet")


def fault(
    node: Node, name: str, *, format: str = "", task: Any = "classification", **fields
) -> str:
    """What a job over this file is told; DATA_INVALID."""
    spec = {"format": format or name.rpartition(".")[2], "path": str(node.root / name), **fields}
    spec = {"target": "y", **spec} if task != "causal_lm" else spec
    with pytest.raises(JobFailed) as caught:
        node.build(spec, task=task)
    assert caught.value.reason is Reason.DATA_INVALID
    said = str(caught.value)
    assert f"{node.root}/{name.strip('*')}" in said or name.startswith("*")
    return said


# ---- what is read -------------------------------------------------------------------------------

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(floats, floats, st.integers(0, 5)), min_size=5, max_size=40),
    st.integers(0, 2**63 - 1),
)
def test_every_format_gives_the_same_rows(node, drawn, seed):
    a, b, y = (list(column) for column in zip(*drawn, strict=True))
    rows = {"a": a, "b": b, "y": y}
    seen = []
    for format in TABLES:
        path = write_table(node, f"rows.{format}", rows)
        spec = {"format": format, "path": path, "target": "y", "num_classes": 6}
        spec |= {"columns": ["b", "a"], "eval": {"fraction": 0.2, "seed": seed}}
        data = node.build(spec)
        inputs, targets = all_rows(data)
        assert sorted(zip(inputs, targets, strict=True)) == sorted(
            ([second, first], label) for first, second, label in zip(a, b, y, strict=True)
        )
        seen.append((inputs, targets, data.description.fingerprint))
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize("format", TABLES)
def test_more_rows_than_a_reader_holds_keep_their_order(node, format):
    num_rows = 2 * CHUNK_ROWS + 3
    rows = {"x": [float(i) for i in range(num_rows)], "y": [i % 2 for i in range(num_rows)]}
    path = write_table(node, f"rows.{format}", rows)
    eval_path = write_table(node, f"eval.{format}", {"x": [0.5, 1.5], "y": [0, 1]})
    data = node.build({"format": format, "path": path, "target": "y", "eval": {"path": eval_path}})
    inputs, targets = all_rows(data)
    assert [row[0] for row in inputs] == [*rows["x"], 0.5, 1.5]
    assert targets == [*rows["y"], 0, 1]


def test_every_column_but_the_targets_is_a_feature_unless_some_are_named(node):
    rows = {"y": [0.0, 1.0, 2.0], "a": [1.0, 2.0, 3.0], "z": [4.0, 5.0, 6.0], "b": [7.0, 8.0, 9.0]}
    path = write_table(node, "rows.csv", rows)
    spec = {"format": "csv", "path": path, "target": ["z", "y"], "eval": {"fraction": 0.4}}
    data = node.build(spec, task="regression")
    inputs, targets = all_rows(data)
    assert sorted(inputs) == [[1, 7], [2, 8], [3, 9]]
    assert sorted(targets) == [[4, 0], [5, 1], [6, 2]]
    assert (data.description.num_targets, data.description.num_classes) == (2, 0)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_lists_of_one_length_are_features_side_by_side(node, format):
    rows = {"v": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "w": [7, 8, 9], "y": [0, 1, 0]}
    path = write_table(node, f"rows.{format}", rows)
    data = node.build({"format": format, "path": path, "target": "y"})
    assert sorted(all_rows(data)[0]) == [[1, 2, 7], [3, 4, 8], [5, 6, 9]]


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_of_images_keep_their_shape(node, compressed):
    images = np.arange(6 * 3 * 2 * 2, dtype=np.uint8).reshape(6, 3, 2, 2)
    save = np.savez_compressed if compressed else np.savez
    save(node.root / "images.npz", x=images, y=np.arange(6) % 2)
    data = node.build({"format": "npz", "path": str(node.root / "images.npz"), "target": "y"})
    assert data.description.input_shape == (3, 2, 2)
    inputs, _ = all_rows(data)
    assert sorted(inputs) == images.astype(float).tolist()


def test_csv_has_quotes_other_delimiters_a_mark_of_byte_order_and_blank_lines_at_its_end(node):
    node.write(
        "rows.csv", '\ufeff"a;b";y\n"1.5";0\n\r\n'.replace("\n\r\n", '\n2.5;1\n"3.5";0\n\n\n')
    )
    path = str(node.root / "rows.csv")
    data = node.build({"format": "csv", "path": path, "target": "y", "delimiter": ";"})
    assert sorted(all_rows(data)[0]) == [[1.5], [2.5], [3.5]]


def test_dictionaries_and_narrow_types_of_arrow_are_numbers(node):
    table = pa.table(
        {
            "a": pa.array([1, 2, 3], pa.int8()),
            "b": pa.array([True, False, True]),
            "c": pa.array([0.5, 0.5, 1.5]).dictionary_encode(),
            "d": pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4, 5, 6], pa.float16()), 2),
            "y": pa.array([0, 1, 0], pa.uint64()),
        }
    )
    pq.write_table(table, node.root / "rows.parquet")
    data = node.build({"format": "parquet", "path": f"{node.root}/rows.parquet", "target": "y"})
    expected = [[1, 1, 0.5, 1, 2], [2, 0, 0.5, 3, 4], [3, 1, 1.5, 5, 6]]
    assert sorted(all_rows(data)[0]) == expected


# ---- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", TABLES)
def test_a_column_that_is_absent_is_named_beside_those_that_are_there(node, format):
    write_table(node, f"rows.{format}", {"a": [1.0], "y": [0]})
    said = fault(node, f"rows.{format}", columns=["b"])
    assert f"rows.{format}: expected a column 'b', saw the columns 'a', 'y'" in said
    assert "expected a column 'z'" in fault(node, f"rows.{format}", target="z")


BAD_ROW = CHUNK_ROWS + 5

BAD_VALUES = [
    ("csv", "x", "oops", "a number, saw 'oops'"),
    ("csv", "x", "nan", "a finite float32, saw 'nan'"),
    ("csv", "x", "", "a number, saw ''"),
    ("jsonl", "x", None, "a finite float32, saw None"),
    ("jsonl", "x", [1.0], "the shape () of the first row, saw (1,)"),
    ("jsonl", "x", {"a": 1}, "a number, saw {'a': 1}"),
    ("jsonl", "x", 1e39, "a finite float32, saw 1e+39"),
    ("parquet", "x", None, "a finite float32, saw None"),
    ("npz", "x", float("inf"), "a finite float32, saw inf"),
    ("csv", "y", "-1", "a class number from 0, saw '-1'"),
    ("csv", "y", "0.5", "a class number from 0, saw '0.5'"),
    ("csv", "y", "cat", "a class number, saw 'cat'"),
    ("jsonl", "y", 3, "a class below num_classes = 3, saw 3"),
    ("parquet", "y", 10**10, "a class number from 0, saw 10000000000"),
    ("npz", "y", -7, "a class number from 0, saw -7"),
]


@pytest.mark.parametrize(("format", "column", "value", "problem"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_row_and_column(node, format, column, value, problem):
    rows: dict[str, list[Any]] = {"x": [1.0] * (BAD_ROW + 9), "y": [1] * (BAD_ROW + 9)}
    rows[column][BAD_ROW - 1] = value
    write_table(node, f"rows.{format}", rows)
    said = fault(node, f"rows.{format}", num_classes=3)
    assert f"rows.{format}, row {BAD_ROW}, column {column!r}: expected {problem}" in said


def test_the_file_of_several_is_named_and_its_rows_counted_from_its_beginning(node):
    write_table(node, "a.csv", {"x": [1.0, 2.0], "y": [0, 1]})
    write_table(node, "b.csv", {"x": [1.0, "?"], "y": [0, 1]})
    said = fault(node, "*.csv")
    assert f"{node.root}/b.csv, row 2, column 'x'" in said


fault_of_second = pytest.mark.parametrize(
    ("second", "problem"),
    [
        ({"a": [1.0], "c": [1.0], "y": [0]}, "expected the columns 'a', 'b' of the first file"),
        ({"a": [1.0], "y": [0]}, "expected the columns 'a', 'b' of the first file"),
    ],
)


@fault_of_second
def test_files_with_other_columns_are_not_put_together(node, second, problem):
    write_table(node, "1.csv", {"a": [1.0], "b": [2.0], "y": [0]})
    write_table(node, "2.csv", second)
    assert problem in fault(node, "*.csv")


def test_arrays_of_another_shape_than_in_the_first_file_are_refused(node):
    np.savez(node.root / "1.npz", x=np.zeros((4, 2), np.float32), y=np.arange(4) % 2)
    np.savez(node.root / "2.npz", x=np.zeros((4, 3), np.float32), y=np.arange(4) % 2)
    said = fault(node, "*.npz")
    assert "2.npz, row 1, column 'x'" in said
    assert "float32 of shape (2,) like the first row, saw" in said


BAD_FILES = [
    ("csv", "", "expected a first line that names the columns"),
    ("csv", "x,x,y\n1,2,0\n", "expected a distinct name for each column"),
    ("csv", "x,y\n1,0\n1\n", "row 2: expected 2 fields, saw 1"),
    ("csv", "x,y\n1,0\n\n1,0\n", "row 2: expected 2 fields, saw 0"),
    ("csv", b"x,y\n1,0\n\xff,0\n", "line 3: expected UTF-8, saw byte 0xff"),
    ("csv", 'x,y\n"1,0\n', "expected CSV, saw: unexpected end of data"),
    ("csv", "x,y\n", "rows of"),
    ("jsonl", '{"x": 1, "y": 0}\n{"x": 1', "row 2: expected a JSON object, saw:"),
    ("jsonl", '{"x": 1, "y": 0}\n[1]\n', "row 2: expected a JSON object, saw [1]"),
    ("jsonl", '{"x": 1, "y": 0}\n\n{"x": 1}', "row 2: expected a JSON object"),
    ("jsonl", '{"x": 1, "y": 0}\n{"y": 1}\n', "row 2: expected a column 'x', saw the columns 'y'"),
    ("jsonl", b'{"x": 1, "y": 0}\n{"x": "\xff"}\n', "row 2: expected UTF-8"),
    ("jsonl", "", "rows of"),
    ("npz", "no archive", "expected an npz archive"),
    ("npz", b"", "expected an npz archive"),
    ("parquet", "no table", "expected a Parquet file"),
    ("parquet", "", "expected a Parquet file"),
]


@pytest.mark.parametrize(("format", "content", "problem"), BAD_FILES)
def test_a_file_that_is_not_of_its_format_says_where(node, format, content, problem):
    node.write(f"rows.{format}", content)
    assert problem in fault(node, f"rows.{format}")


def archive(node: Node, **members: bytes) -> None:
    with zipfile.ZipFile(node.root / "rows.npz", "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def array(values: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=True)
    return content.getvalue()


GOOD = array(np.zeros(3))

BAD_ARRAYS = [
    ({"x": b"junk", "y": GOOD}, "'x': expected a numpy array"),
    ({"x": array(np.array([{}, {}, {}], dtype=object)), "y": GOOD}, "'x': expected numbers"),
    ({"x": array(np.array("text")), "y": GOOD}, "'x': expected an array of rows"),
    ({"x": array(np.float32(1)), "y": GOOD}, "'x': expected an array of rows, saw a single number"),
    (
        {"x": array(np.zeros(4)), "y": GOOD},
        "expected arrays with the same number of rows, saw {'x': 4, 'y': 3}",
    ),
    ({"x": GOOD[:-8], "y": GOOD}, "'x': expected 3 rows, saw the end of the file"),
]


@pytest.mark.parametrize(("members", "problem"), BAD_ARRAYS)
def test_arrays_that_are_no_rows_are_refused_and_never_unpickled(node, members, problem):
    archive(node, **members)
    assert problem in fault(node, "rows.npz", num_classes=2)


def test_a_torn_parquet_file_is_refused(node):
    path = Path(write_table(node, "rows.parquet", {"x": [1.0] * 1000, "y": [0, 1] * 500}))
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(content)
    with pytest.raises(JobFailed, match=r"rows\.parquet") as caught:
        node.build({"format": "parquet", "path": str(path), "target": "y"})
    assert caught.value.reason in (Reason.DATA_INVALID, Reason.DATA_UNREADABLE)


def test_a_column_whose_name_is_not_utf_8_is_refused(node):
    path = Path(write_table(node, "rows.parquet", {"x-x-x": [1.0, 2.0], "y": [0, 1]}))
    path.write_bytes(path.read_bytes().replace(b"x-x-x", b"x-\xe9-x"))
    assert "rows.parquet: expected a Parquet file, saw: 'utf-8'" in fault(node, "rows.parquet")


@pytest.mark.parametrize(
    ("format", "content", "problem"),
    [
        ("jsonl", '{"t": "fine"}\n{"t": 5}\n', "row 2, column 't': expected a text, saw 5"),
        (
            "jsonl",
            '{"t": [{"role": "user", "content": "hello"}]}\n',
            "'content': 'hello'}]; write one text a row, of messages as the model's chat template",
        ),
        (
            "jsonl",
            '{"t": "fine"}\n{"t": "\\ud800"}\n',
            "row 2, column 't': expected a text that UTF-8",
        ),
        ("text", b"fine\nalso \xff fine\n", "line 2: expected UTF-8, saw byte 0xff"),
        ("text", b"fine\n\xc3", "line 2: expected UTF-8, saw byte 0xc3"),
    ],
)
def test_what_is_no_text_says_where(node, format, content, problem):
    node.write(f"rows.{format}", content)
    fields = {"text": "t"} if format == "jsonl" else {}
    assert problem in fault(node, f"rows.{format}", task="causal_lm", **fields)


def test_records_have_a_largest_size(node, monkeypatch):
    monkeypatch.setattr("roadless.worker.data.formats.lines.MAX_RECORD_BYTES", 30)
    node.write("rows.jsonl", json.dumps({"x": 1, "y": 0}) + "\n" + json.dumps({"x": [1] * 50}))
    assert "row 2: expected at most 30 bytes" in fault(node, "rows.jsonl")


def test_helpers_write_what_they_say(node):
    rows = {"a": [1, 2], "b": ["x", "y"]}
    assert csv_text(rows) == "a,b\n1,x\n2,y\n"
    assert [json.loads(line) for line in jsonl_text(rows).splitlines()] == [
        {"a": 1, "b": "x"},
        {"a": 2, "b": "y"},
    ]
