"""Hugging Face data sets: folders and their splits, and nothing that runs or leads elsewhere."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import Node, all_rows, csv_text, jsonl_text, said
from PIL import Image

from roadless.service.contract.states import Reason
from roadless.worker.errors import JobFailed

ROWS = {"x": [float(i) for i in range(3000)], "y": [i % 3 for i in range(3000)]}
FEW = {"x": [0.5, 1.5], "y": [2, 0]}


def spec(node: Node, folder: str = "set", **fields):
    path = str(node.root / folder)
    return {"kind": "huggingface", "path": path, "target": "y", **fields}


def fault(node: Node, reason: Reason, **fields) -> str:
    with pytest.raises(JobFailed) as caught:
        node.build(spec(node, **fields))
    assert caught.value.reason is reason
    return str(caught.value)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("format", ["jsonl", "parquet", "csv"])
def test_splits_of_a_folder_are_read_in_order(node, format, streaming):
    for split, rows in (("train", ROWS), ("test", FEW)):
        if format == "parquet":
            (node.root / "set").mkdir(exist_ok=True)
            pq.write_table(pa.table(rows), node.root / f"set/{split}.parquet", row_group_size=100)
        else:
            text = {"jsonl": jsonl_text, "csv": csv_text}[format](rows)
            node.write(f"set/{split}.{format}", text)
    data = node.build(spec(node, eval={"split": "test"}, streaming=streaming))
    inputs, targets = all_rows(data)
    assert [row[0] for row in inputs] == [*ROWS["x"], *FEW["x"]]
    assert targets == [*ROWS["y"], *FEW["y"]]
    cache = Path(node.sources.cache)
    assert {path.suffix for path in cache.rglob("*") if path.is_file()} <= {".bin", ".json", ""}


def test_a_share_of_the_split_is_held_out(node):
    node.write("set/train.jsonl", jsonl_text(ROWS))
    data = node.build(spec(node, columns=["x"], eval={"fraction": 0.5}))
    assert (data.num_train, data.num_eval) == (1500, 1500)


def test_a_column_of_texts_is_packed(node):
    texts = [f"text {i}" for i in range(40)]
    node.write("set/train.jsonl", jsonl_text({"t": texts * 2}))
    node.write("set/test.jsonl", jsonl_text({"t": texts}))
    fields = {"text": "t", "target": None, "eval": {"split": "test"}}
    data = node.build(spec(node, **fields), task="causal_lm", context=len(said(texts)) - 1)
    batch = data.eval_batch(0, 1)
    assert bytes([int(batch.inputs[0, 0]), *batch.targets[0].tolist()]) == said(texts)


def test_a_bad_value_is_named_with_file_row_and_column(node):
    node.write("set/train.jsonl", jsonl_text({"x": [1.0] * 2000, "y": [0] * 1998 + [-1, 0]}))
    told = fault(node, Reason.DATA_INVALID)
    assert "set/train.jsonl, row 1999, column 'y': expected a class number from 0, saw -1" in told


def test_changed_files_are_read_anew(node):
    node.write("set/train.jsonl", jsonl_text(ROWS))
    first = node.build(spec(node)).description
    node.write("set/train.jsonl", jsonl_text({**ROWS, "x": ROWS["x"][::-1]}))
    assert node.build(spec(node)).description != first


@pytest.mark.parametrize(
    ("fields", "reason", "problem"),
    [
        ({"split": "absent"}, Reason.DATA_INVALID, "splits, which are 'train', saw 'absent'"),
        ({"eval": {"split": "absent"}}, Reason.DATA_INVALID, "which are 'train', saw 'absent'"),
        ({"split": "train[:50%]"}, Reason.DATA_INVALID, "saw 'train[:50%]'; a part of a split"),
        ({"name": "absent"}, Reason.DATA_INVALID, "absent"),
        ({"target": "z"}, Reason.DATA_INVALID, "expected a column 'z', saw the columns 'x', 'y'"),
        ({"folder": "empty"}, Reason.DATA_NOT_FOUND, "empty"),
        ({"folder": "nowhere"}, Reason.DATA_NOT_FOUND, "expected a folder at"),
        ({"folder": "set/train.jsonl"}, Reason.DATA_NOT_FOUND, "expected a folder at"),
        ({"path": "squad"}, Reason.DATA_FORBIDDEN, "ROADLESS_ALLOW_HUB=1"),
        ({"path": "/etc"}, Reason.DATA_FORBIDDEN, "ROADLESS_DATA_ROOTS"),
        ({"path": "../secret"}, Reason.DATA_FORBIDDEN, "ROADLESS_DATA_ROOTS"),
    ],
)
def test_what_cannot_be_read_says_why(node, fields, reason, problem):
    node.write("set/train.jsonl", jsonl_text(FEW))
    (node.root / "empty").mkdir()
    assert problem in fault(node, reason, **fields)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("README.md", "---\nconfigs: [\n---\n", "while parsing a flow node expected the node"),
        ("README.md", "---\nconfigs: 3\n---\n", "Expected configs to be a list"),
        ("README.md", "---\n- 3\n---\n", ""),
        ("train.zip", "no archive", "File is not a zip file"),
    ],
)
def test_whatever_the_library_raises_over_a_folder_is_final(node, name, content, problem):
    node.write(f"set/{name}", content)
    if name == "README.md":
        node.write("set/train.jsonl", jsonl_text(FEW))
    said = fault(node, Reason.DATA_INVALID)
    assert "expected to read" in said
    assert problem in said


def test_formats_that_can_carry_code_are_forbidden(node):
    node.write("set/train.h5", b"x")
    assert "saw hdf5" in fault(node, Reason.DATA_FORBIDDEN)


def test_scripts_of_a_data_set_are_never_run(node, tmp_path):
    node.write("set/set.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    node.write("set/train.jsonl", jsonl_text(ROWS))
    assert "scripts are no longer supported" in fault(node, Reason.DATA_INVALID)
    (node.root / "set/set.py").rename(node.root / "set/other.py")
    node.build(spec(node))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("target", ["{outside}", "../../secret.jsonl"])
def test_a_description_cannot_name_files_elsewhere(node, tmp_path, target):
    """The card of a data set, which its author writes, says where its files are."""
    (tmp_path / "secret.jsonl").write_text(jsonl_text(ROWS))
    path = target.format(outside=tmp_path / "secret.jsonl")
    configs = [{"config_name": "default", "data_files": [{"split": "train", "path": path}]}]
    node.write("set/README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(JobFailed) as caught:
        node.build(spec(node))
    assert caught.value.reason in (Reason.DATA_FORBIDDEN, Reason.DATA_NOT_FOUND)


def test_a_file_that_a_description_names_twice_is_refused(node):
    """Its rows would be held out and trained on."""
    files = {"split": "train", "path": ["*.jsonl", "rows.jsonl"]}
    node.write(
        "set/README.md",
        f"---\nconfigs: {json.dumps([{'config_name': 'default', 'data_files': [files]}])}\n---\n",
    )
    node.write("set/rows.jsonl", jsonl_text(FEW))
    assert "expected each file once, saw" in fault(node, Reason.DATA_INVALID)


def test_a_link_in_the_folder_cannot_lead_out_of_it(node, tmp_path):
    (tmp_path / "secret.jsonl").write_text(jsonl_text(ROWS))
    node.write("set/test.jsonl", jsonl_text(FEW))
    (node.root / "set" / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "to lie in it" in fault(node, Reason.DATA_FORBIDDEN)


# ---- what its own readers would change ----------------------------------------------------------


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("odd", [5, 1.5, True, None, ["c"], {"k": 1}])
@pytest.mark.parametrize("files", [("1",), ("1", "2"), ("2", "1")])
def test_one_odd_value_is_refused_and_wraps_no_text_in_json(node, odd, files):
    """datasets 5.2.0 encodes all texts of such a file as JSON, and of each file behind it."""
    contents = [lines({"t": "fine"}, {"t": "fine too"}, {"t": odd}), lines({"t": "fine"})]
    for number, content in zip(files, contents, strict=False):
        node.write(f"set/train-{number}.jsonl", content)
    with pytest.raises(JobFailed) as caught:
        node.build(spec(node, text="t", target=None), task="causal_lm")
    seen = f"train-{files[0]}.jsonl, row 3, column 't': expected a text, saw {odd!r}"
    assert seen in str(caught.value)


def test_an_odd_value_in_another_column_leaves_texts_as_they_are(node):
    records = [{"t": f"text {i}", "m": [i, str(i), {"i": i}][i % 3]} for i in range(30)]
    node.write("set/train.jsonl", lines(*records, *records))
    node.write("set/test.jsonl", lines(*records))
    fields = {"text": "t", "target": None, "eval": {"split": "test"}}
    texts = said([record["t"] for record in records])
    data = node.build(spec(node, **fields), task="causal_lm", context=len(texts) - 1)
    batch = data.eval_batch(0, 1)
    assert bytes([int(batch.inputs[0, 0]), *batch.targets[0].tolist()]) == texts


UNCHANGED = {
    "numbers that are texts": ["007", "1e5", "0.50", "1_0"],
    "what pandas takes for nothing": ["NA", "null", "None", "nan", "hello"],
    "times": ["2021-01-01T10:00:00", "2021-01-02T10:00:00Z", "2021-01-02 10:00:00"],
    "booleans": ["True", "false", "yes"],
}


@pytest.mark.parametrize("format", ["csv", "jsonl"])
@pytest.mark.parametrize("before", [[], ["a text that nobody could take for a number"]])
@pytest.mark.parametrize("texts", UNCHANGED.values(), ids=UNCHANGED)
def test_texts_stay_texts_whatever_they_look_like(node, texts, before, format):
    """Also behind a file with other texts, to whose type the library would cast them."""
    write = {"csv": csv_text, "jsonl": jsonl_text}[format]
    parts = [one for one in (before, texts) if one]
    for number, part in enumerate(parts):
        node.write(f"set/train-{number}.{format}", write({"t": part * 2}))
        node.write(f"set/test-{number}.{format}", write({"t": part}))
    expected = said([*before, *texts])
    fields = {"text": "t", "target": None, "eval": {"split": "test"}}
    data = node.build(spec(node, **fields), task="causal_lm", context=len(expected) - 1)
    batch = data.eval_batch(0, 1)
    assert bytes([int(batch.inputs[0, 0]), *batch.targets[0].tolist()]) == expected


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_numbers_of_files_of_other_types_and_orders_of_columns_are_put_together(node, format):
    parts = [{"x": [1, 2], "w": [7, 8], "y": [0, 1]}, {"y": [1, 0], "w": [0.5, 1.5], "x": [3, 4]}]
    for number, rows in enumerate(parts):
        if format == "parquet":
            (node.root / "set").mkdir(exist_ok=True)
            pq.write_table(pa.table(rows), node.root / f"set/train-{number}.parquet")
        else:
            write = {"csv": csv_text, "jsonl": jsonl_text}[format]
            node.write(f"set/train-{number}.{format}", write(rows))
    inputs, targets = all_rows(node.build(spec(node, eval={"fraction": 0.25})))
    seen = sorted([*row, label] for row, label in zip(inputs, targets, strict=True))
    assert seen == [[1, 7, 0], [2, 8, 1], [3, 0.5, 1], [4, 1.5, 0]]


UNLIKE = [
    ("jsonl", lines({"x": 1, "y": 0}, {"x": 2, "y": 1, "a": 5}), "row 2: expected the columns 'x'"),
    ("csv", "x,y\n1,0,5\n2,1,7\n", "row 1: expected 2 fields, saw 3"),
    ("csv", "x,y\n1,0\n2\n", "row 2: expected 2 fields, saw 1"),
    ("csv", "x,x,y\n1,0,0\n", "expected a distinct name for each column"),
    ("jsonl", '{"x": 1, "x": 2, "y": 0}\n', "row 1, column 'x': expected each name of an object"),
]


@pytest.mark.parametrize(("format", "content", "problem"), UNLIKE)
def test_rows_that_do_not_fit_their_file_are_refused(node, format, content, problem):
    """pandas takes the first field of a row that is too long for its index, and shifts the rest."""
    node.write(f"set/train.{format}", content)
    assert f"set/train.{format}" in fault(node, Reason.DATA_INVALID)
    assert problem in fault(node, Reason.DATA_INVALID)


@pytest.mark.parametrize(
    ("second", "problem"),
    [({"x": [1], "a": [2], "y": [0]}, "'a'"), ({"y": [0]}, "expected columns beside the target")],
)
def test_a_file_with_other_columns_than_the_first_is_named(node, second, problem):
    node.write("set/train-0.csv", csv_text({"x": [1, 2], "y": [0, 1]}))
    node.write("set/train-1.csv", csv_text(second))
    told = fault(node, Reason.DATA_INVALID)
    assert "set/train-1.csv" in told
    assert problem in told


def test_a_column_that_was_stored_as_json_is_read_as_what_it_says(node, tmp_path):
    node.write("odd.jsonl", lines({"t": 'a "quoted" text', "n": 1}, {"t": 5, "n": "x"}))
    loaded = datasets.load_dataset(
        "json", data_files=f"{node.root}/odd.jsonl", split="train", cache_dir=str(tmp_path / "hf")
    )
    (node.root / "set").mkdir()
    loaded.to_parquet(f"{node.root}/set/train.parquet")
    with pytest.raises(JobFailed, match=r"row 2, column 't': expected a text, saw 5"):
        node.build(spec(node, text="t", target=None), task="causal_lm")
    told = fault(node, Reason.DATA_INVALID, columns=["n"], target="t")
    assert "row 2, column 'n': expected a number, saw 'x'" in told


# ---- forms of data sets -------------------------------------------------------------------------

FEATURES = """---
dataset_info:
  features:
  - name: x
    dtype: int64
  - name: y
    dtype:
      class_label:
        names:
          '0': 'cat'
          '1': 'dog'
          '2': '0'
---
"""


@pytest.mark.parametrize(
    ("format", "labels", "expected"),
    [
        ("csv", ["dog", "cat", "1", "0"], [1, 0, 1, 0]),  # as in all CSV, a number is a number
        ("jsonl", ["dog", "cat", 1, "0"], [1, 0, 1, 2]),
    ],
)
def test_classes_that_a_description_names_get_its_numbers(node, format, labels, expected):
    write = {"csv": csv_text, "jsonl": jsonl_text}[format]
    node.write("set/README.md", FEATURES)
    node.write(f"set/train.{format}", write({"x": [0, 1, 2, 3], "y": labels}))
    inputs, targets = all_rows(node.build(spec(node, eval={"fraction": 0.25})))
    assert [targets[inputs.index([i])] for i in range(4)] == expected


@pytest.mark.parametrize("labels", [["dog", "cow"], ["cow", "dog"], ["cow", "cow"]])
def test_a_class_that_a_description_does_not_name_is_refused(node, labels):
    for format, write in {"csv": csv_text, "jsonl": jsonl_text}.items():
        folder = f"{format}-set"
        node.write(f"{folder}/README.md", FEATURES)
        node.write(f"{folder}/train.{format}", write({"x": [0, 1], "y": labels}))
        told = fault(node, Reason.DATA_INVALID, folder=folder)
        row = labels.index("cow") + 1
        assert f"row {row}, column 'y': expected one of the classes 'cat', 'dog'" in told
        assert "saw 'cow'; add it there" in told


def test_other_names_of_classes_are_another_data_set(node):
    node.write("set/train.csv", csv_text({"x": [0, 1, 2], "y": ["dog", "cat", "dog"]}))
    seen = []
    for card in (FEATURES, FEATURES.replace("cat", "horse").replace("dog", "cat")):
        node.write("set/README.md", card.replace("horse", "dog"))
        seen.append(node.build(spec(node)).description.fingerprint)
    assert seen[0] != seen[1]


def test_a_separator_that_a_description_or_an_extension_names_is_heeded(node):
    node.write("tabs/train.tsv", "x\ty\n1\t0\n2\t1\n")
    configs = [{"config_name": "default", "data_files": "train.csv", "sep": ";"}]
    node.write("set/README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n")
    node.write("set/train.csv", "x;y\n1;0\n2;1\n")
    for folder in ("tabs", "set"):
        inputs, targets = all_rows(node.build(spec(node, folder, eval={"fraction": 0.5})))
        assert sorted(zip(inputs, targets, strict=True)) == [([1], 0), ([2], 1)]


@pytest.mark.parametrize("option", [{"skiprows": 1}, {"nrows": 2}, {"on_bad_lines": "skip"}])
def test_an_option_that_would_leave_rows_out_is_refused(node, option):
    configs = [{"config_name": "default", "data_files": "train.csv", **option}]
    node.write("set/README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n")
    node.write("set/train.csv", csv_text(ROWS))
    (name,) = option
    assert f"saw {name} = {option[name]!r} in its description" in fault(node, Reason.DATA_INVALID)


def test_images_and_classes_that_the_library_stored_are_read(node):
    reds = [0, 51, 102, 255]
    loaded = datasets.Dataset.from_dict(
        {"seen": [Image.new("RGB", (3, 2), (red, 0, 0)) for red in reds], "y": ["b", "a", "b", "a"]}
    ).cast_column("y", datasets.ClassLabel(names=["a", "b"]))
    (node.root / "set").mkdir()
    loaded.to_parquet(f"{node.root}/set/train.parquet")
    inputs, targets = all_rows(node.build(spec(node, image="seen", eval={"fraction": 0.25})))
    pairs = zip(inputs, targets, strict=True)
    seen = {round((image[0][0][0] + 1) * 255 / 2): label for image, label in pairs}
    assert seen == {0: 1, 51: 0, 102: 1, 255: 0}


def test_images_that_were_left_where_they_are_are_refused(node, tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "1.png")
    kind = {"seen": datasets.Image(), "y": datasets.Value("int64")}
    rows = {"seen": [{"bytes": None, "path": str(tmp_path / "1.png")}] * 2, "y": [0, 1]}
    table = pa.table(rows, schema=datasets.Features(kind).arrow_schema)
    (node.root / "set").mkdir()
    pq.write_table(table, node.root / "set/train.parquet")
    told = fault(node, Reason.DATA_INVALID, image="seen")
    assert "row 1, column 'seen': expected the bytes of an image, saw {'bytes': None" in told
    assert "store the content of the file in the column" in told


def test_columns_of_arrow_that_have_no_plain_form_are_read_as_python_reads_them(node):
    kinds = pa.DictionaryArray.from_arrays(
        pa.array([1, 0, 1, 1], pa.int32()), pa.array(["dog", "cat"], pa.string_view())
    )
    truths = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1, 5, -1], pa.int8()))
    table = pa.table({"x": truths, "y": kinds})
    (node.root / "set").mkdir()
    with pa.ipc.new_file(str(node.root / "set/train.arrow"), table.schema) as written:
        written.write_table(table)
    inputs, targets = all_rows(node.build(spec(node, eval={"fraction": 0.25, "seed": 0})))
    read = [(row[0], ["cat", "dog"][label]) for row, label in zip(inputs, targets, strict=True)]
    assert sorted(read) == sorted(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True))


@pytest.mark.parametrize("hole", ["index", "value"])
def test_a_hole_in_a_dictionary_of_arrow_is_named_with_its_row(node, hole):
    at = pa.array([0, None if hole == "index" else 1, 0], pa.int32())
    kinds = pa.DictionaryArray.from_arrays(at, pa.array(["dog", None], pa.string_view()))
    table = pa.table({"x": [1.0, 2.0, 3.0], "y": kinds})
    (node.root / "set").mkdir()
    with pa.ipc.new_file(str(node.root / "set/train.arrow"), table.schema) as written:
        written.write_table(table)
    assert "row 2, column 'y': expected the name of a class, like the first row, saw None" in fault(
        node, Reason.DATA_INVALID
    )


@pytest.mark.parametrize("is_stream", [True, False])
def test_arrow_files_are_read_in_either_form(node, is_stream):
    table, content = pa.table(ROWS), io.BytesIO()
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new(content, table.schema) as writer:
        writer.write_table(table)
    node.write("set/train.arrow", content.getvalue())
    inputs, targets = all_rows(node.build(spec(node, eval={"fraction": 0.001})))
    assert sorted(row[0] for row in inputs) == ROWS["x"]
    assert len(targets) == len(ROWS["y"])


@pytest.mark.parametrize("content", [b"", b"no table", b"ARROW1\0\0cut"])
def test_what_is_no_arrow_file_is_refused(node, content):
    node.write("set/train.arrow", content)
    assert "train.arrow: expected an Arrow file" in fault(node, Reason.DATA_INVALID)


def test_an_index_that_pandas_stored_is_no_feature(node):
    (node.root / "set").mkdir()
    table = pa.table({"x": [1.0, 2.0], "y": [0, 1], "__index_level_0__": [7, 9]})
    pq.write_table(table, node.root / "set/train.parquet")
    assert sorted(all_rows(node.build(spec(node)))[0]) == [[1.0], [2.0]]
