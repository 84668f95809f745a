"""Hugging Face data sets: folders and their splits, and nothing that runs or leads elsewhere."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import Node, all_rows, csv_text, jsonl_text, said

from roadless.service.contract.states import Reason
from roadless.worker.errors import JobFailed

ROWS = {"x": [float(i) for i in range(3000)], "y": [i % 3 for i in range(3000)]}
FEW = {"x": [0.5, 1.5], "y": [2, 0]}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.at(tmp_path)


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


def test_a_bad_value_is_named_with_split_row_and_column(node):
    node.write("set/train.jsonl", jsonl_text({"x": [1.0] * 2000, "y": [0] * 1998 + [-1, 0]}))
    told = fault(node, Reason.DATA_INVALID)
    assert (
        "set, split 'train', row 1999, column 'y': expected a class number from 0, saw -1" in told
    )


def test_changed_files_are_read_anew(node):
    node.write("set/train.jsonl", jsonl_text(ROWS))
    first = node.build(spec(node)).description
    node.write("set/train.jsonl", jsonl_text({**ROWS, "x": ROWS["x"][::-1]}))
    assert node.build(spec(node)).description != first


@pytest.mark.parametrize(
    ("fields", "reason", "problem"),
    [
        ({"split": "absent"}, Reason.DATA_INVALID, "Bad split: absent"),
        ({"eval": {"split": "absent"}}, Reason.DATA_INVALID, "Bad split: absent"),
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


def test_a_link_in_the_folder_cannot_lead_out_of_it(node, tmp_path):
    (tmp_path / "secret.jsonl").write_text(jsonl_text(ROWS))
    node.write("set/test.jsonl", jsonl_text(FEW))
    (node.root / "set" / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert "to lie in it" in fault(node, Reason.DATA_FORBIDDEN)
