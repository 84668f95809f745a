"""What a specification may say of data, and what is refused before any rank starts."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from roadless.service.contract.ids import new_id
from roadless.service.contract.job.data import DataSpec, FilesData, tasks_of_data
from roadless.service.contract.job.spec import JobSpec

ADAPTER: TypeAdapter[DataSpec] = TypeAdapter(DataSpec)
FILES = {"kind": "files", "path": "/data/a"}
ID = new_id("ds")

GOOD: list[tuple[dict[str, Any], set[str]]] = [
    ({"kind": "builtin", "name": "digits"}, {"classification"}),
    ({"kind": "builtin", "name": "breast_cancer"}, {"classification"}),
    ({"kind": "builtin", "name": "python_stdlib_bytes"}, {"causal_lm"}),
    (
        {"kind": "builtin", "name": "synthetic", "generator": "classification"},
        {"classification"},
    ),
    ({"kind": "builtin", "name": "synthetic", "generator": "regression"}, {"regression"}),
    ({"kind": "builtin", "name": "synthetic", "generator": "tokens"}, {"causal_lm"}),
    ({**FILES, "format": "bytes"}, {"causal_lm"}),
    ({**FILES, "format": "text", "tokenizer": "/data/tokenizer"}, {"causal_lm"}),
    ({**FILES, "format": "csv", "target": "y"}, {"classification", "regression"}),
    ({**FILES, "format": "csv", "target": ["y", "z"]}, {"regression"}),
    ({**FILES, "format": "csv", "target": "y", "num_classes": 3}, {"classification"}),
    ({**FILES, "format": "jsonl", "text": "t", "eval": {"path": "s3://b/k"}}, {"causal_lm"}),
    ({"kind": "huggingface", "path": "squad", "text": "context"}, {"causal_lm"}),
    ({"kind": "dataset", "dataset_id": ID}, {"causal_lm"}),
    ({"kind": "dataset", "dataset_id": ID, "target": "y"}, {"classification", "regression"}),
]


@pytest.mark.parametrize(("spec", "tasks"), GOOD)
def test_a_specification_survives_json_and_says_what_it_can_teach(spec, tasks):
    data = ADAPTER.validate_python(spec)
    assert ADAPTER.validate_json(ADAPTER.dump_json(data)) == data
    assert tasks_of_data(data) == tasks


BAD: list[tuple[dict[str, Any], str]] = [
    ({**FILES, "format": "csv"}, "expected a target, or a column of text, for csv, saw neither"),
    ({**FILES, "format": "csv", "target": "y", "text": "t"}, "expected target or text, saw both"),
    ({**FILES, "format": "text", "target": "y"}, "text, which has no columns"),
    ({**FILES, "format": "npz", "text": "t"}, "expected a target for npz"),
    ({**FILES, "format": "bytes", "tokenizer": "/t"}, "expected format text for a tokenizer"),
    ({**FILES, "format": "csv", "text": "t", "columns": ["a"]}, "expected a target beside"),
    ({**FILES, "format": "csv", "text": "t", "standardise": True}, "expected a target beside"),
    (
        {**FILES, "format": "parquet", "target": "y", "image": "i", "columns": ["a"]},
        "expected columns or image, saw both",
    ),
    ({**FILES, "format": "parquet", "target": "y", "image_size": [2, 2]}, "an image column"),
    (
        {**FILES, "format": "parquet", "target": "y", "image_channels": 3},
        "expected an image column beside image_channels, saw none",
    ),
    ({**FILES, "format": "parquet", "target": "y", "image": "i", "image_channels": 4}, "1 or 3"),
    ({**FILES, "format": "csv", "target": "y", "tokenizer": "/t"}, "no tokenizer or separator"),
    ({**FILES, "format": "text", "separator": "x"}, "expected no separator for bytes"),
    ({**FILES, "format": "text", "tokenizer": "s3://b/t"}, "expected a tokenizer on the nodes"),
    ({**FILES, "format": "text", "path": "ftp://host/x"}, "expected a local path or s3"),
    ({**FILES, "format": "text", "path": "http:///x"}, "expected a local path or s3"),
    ({**FILES, "format": "text", "path": "https://me:secret@host/x"}, "without user name"),
    ({**FILES, "format": "text", "path": "a\0b"}, "null byte"),
    ({**FILES, "format": "text", "path": []}, "at least 1 item"),
    ({**FILES, "format": "zip"}, "'parquet', 'jsonl', 'csv', 'npz', 'text' or 'bytes'"),
    ({**FILES, "format": "text", "eval": {"fraction": 1}}, "less than 1"),
    ({**FILES, "format": "text", "eval": {"fraction": 0}}, "greater than 0"),
    ({**FILES, "format": "text", "eval": {"split": "test"}}, "Extra inputs are not permitted"),
    ({"kind": "huggingface", "path": "squad"}, "saw neither"),
    ({"kind": "dataset", "dataset_id": "ds_1"}, "should match pattern"),
    (
        {
            "kind": "builtin",
            "name": "synthetic",
            "generator": "classification",
            "num_train": 10**8,
            "input_shape": [3, 32, 32],
        },
        "expected (num_train + num_eval) x input_shape of at most",
    ),
]


@pytest.mark.parametrize(("spec", "problem"), BAD)
def test_what_can_never_train_is_refused_with_what_was_expected(spec, problem):
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(spec)
    assert problem in str(caught.value)


REPEATED: list[tuple[dict[str, Any], str]] = [
    ({"target": "y", "columns": ["a", "b", "a"]}, "once in columns, saw 'a' twice"),
    ({"target": ["y", "z", "y"]}, "once in target, saw 'y' twice"),
    ({"target": "y", "columns": ["a", "y"]}, "saw 'y' as both"),
    ({"target": ["y", "z"], "columns": ["z"]}, "saw 'z' as both"),
    ({"target": "y", "image": "y"}, "saw 'y' as both"),
]


@pytest.mark.parametrize(("columns", "problem"), REPEATED)
def test_a_column_has_one_role_in_a_new_job_and_a_stored_one_stays_readable(columns, problem):
    data = ADAPTER.validate_python({**FILES, "format": "parquet", **columns})
    with pytest.raises(ValueError, match=problem):
        data.require_distinct_columns()


def test_secrets_of_a_refused_url_are_not_repeated():
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python({**FILES, "format": "text", "path": "https://me:secret@host/x"})
    assert "secret" not in "".join(error["msg"] for error in caught.value.errors())


def test_a_stored_specification_of_before_other_formats_is_upgraded_on_read():
    old = {"kind": "files", "name": "bytes", "path": "/data/a"}
    data = ADAPTER.validate_python(old)
    assert isinstance(data, FilesData)
    assert data.format == "bytes"
    assert data.eval.fraction == 0.05


@pytest.mark.parametrize(("task", "fits"), [("causal_lm", True), ("classification", False)])
def test_the_task_must_be_one_that_the_data_can_teach(task, fits):
    models = {"causal_lm": "gpt", "classification": "mlp"}
    spec = {
        "model": {"kind": "preset", "name": models[task]},
        "data": {**FILES, "format": "text"},
        "task": task,
        "optimizer": {"name": "adamw_schedulefree"},
    }
    if fits:
        JobSpec.model_validate(spec)
        return
    with pytest.raises(ValidationError, match="expected 'causal_lm' for data 'files', saw 'class"):
        JobSpec.model_validate(spec)
