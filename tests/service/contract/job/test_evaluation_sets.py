"""Further evaluation sets and custom metrics: what a specification may say of them."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from roadless.service.contract.job.budget import METRICS
from roadless.service.contract.job.data import DataSpec
from roadless.service.contract.job.evaluation import EvaluationSpec
from roadless.service.contract.job.evaluation_sets import (
    MAX_CUSTOM_METRICS,
    MAX_SETS,
    RESERVED_NAMES,
    is_standardised,
    metric_names,
    prepared_alike,
)
from roadless.service.contract.job.spec import JobSpec, uploads_of

DATA: TypeAdapter[DataSpec] = TypeAdapter(DataSpec)
DIGITS = {"kind": "builtin", "name": "digits"}
CANCER = {"kind": "builtin", "name": "breast_cancer"}
STDLIB = {"kind": "builtin", "name": "python_stdlib_bytes"}
TABLE = {"kind": "files", "format": "csv", "path": "/d/a.csv", "target": "y"}
TEXT = {"kind": "files", "format": "text", "path": "/d/a.txt"}
TOP3 = {"name": "top3", "entry_point": "metrics:top", "arguments": {"k": 3}}


def named(name: str = "shifted", data: Any = DIGITS, **fields: Any) -> dict[str, Any]:
    return {"name": name, "data": data, **fields}


def spec_of(**changes: Any) -> JobSpec:
    spec = {
        "model": {"kind": "preset", "name": "mlp"},
        "data": DIGITS,
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree"},
    }
    return JobSpec.model_validate(spec | changes)


def language_spec(**changes: Any) -> JobSpec:
    return spec_of(
        **{"model": {"kind": "preset", "name": "gpt"}, "data": STDLIB, "task": "causal_lm"}
        | changes
    )


def fault(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        spec_of(**changes)
    (error,) = caught.value.errors()
    return str(error["msg"])


def alike(data: Any, *, like: Any, **options: Any) -> Any:
    return prepared_alike(DATA.validate_python(data), like=DATA.validate_python(like), **options)


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
@pytest.mark.parametrize("kind", ["sets", "metrics"])
def test_a_name_that_an_evaluation_uses_for_something_else_is_refused(name: str, kind: str) -> None:
    one = {"sets": named(name), "metrics": {**TOP3, "name": name}}[kind]
    assert f"saw {name!r}" in fault(evaluation={kind: [one]})


def test_every_metric_of_a_task_is_a_reserved_name() -> None:
    told = {name for names in METRICS.values() for name in names}
    assert {f"eval.{name}" for name in RESERVED_NAMES} == told | {"eval.loss_at_y"}


@pytest.mark.parametrize(
    "evaluation",
    [
        {"sets": [named("a"), named("a")]},
        {"metrics": [TOP3, TOP3]},
        {"sets": [named("top3")], "metrics": [TOP3]},
    ],
)
def test_sets_and_metrics_have_names_of_their_own(evaluation: dict[str, Any]) -> None:
    assert "twice" in fault(evaluation=evaluation)


@pytest.mark.parametrize("name", ["", "Shifted", "a.b", "a-b", "1a", "a" * 41])
def test_a_name_is_a_lower_case_identifier(name: str) -> None:
    assert "should match pattern" in fault(evaluation={"sets": [named(name)]})


def test_the_longest_names_make_a_metric_that_an_event_can_say() -> None:
    spec = spec_of(evaluation={"sets": [named("s" * 40)], "metrics": [{**TOP3, "name": "m" * 40}]})
    names = metric_names(spec.task, sets=spec.evaluation.sets, metrics=spec.evaluation.metrics)
    assert max(map(len, names)) == len(f"eval.{'s' * 40}.{'m' * 40}") <= 100


def test_sets_and_metrics_are_bounded() -> None:
    too_many = [named(f"set_{i}") for i in range(MAX_SETS + 1)]
    assert f"at most {MAX_SETS} items" in fault(evaluation={"sets": too_many})
    metrics = [{**TOP3, "name": f"m{i}"} for i in range(MAX_CUSTOM_METRICS + 1)]
    assert f"at most {MAX_CUSTOM_METRICS} items" in fault(evaluation={"metrics": metrics})


# ---- goals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["eval.shifted.loss", "eval.top3", "eval.shifted.top3"])
@pytest.mark.parametrize("goal", ["until", "patience"])
def test_a_goal_may_be_about_a_set_or_a_custom_metric(metric: str, goal: str) -> None:
    amount = {"until": {"value": 1.0, "mode": "min"}, "patience": {"evaluations": 3}}[goal]
    evaluation = {"sets": [named()], "metrics": [TOP3]}
    budget = {goal: {"metric": metric, **amount}}
    assert spec_of(evaluation=evaluation, budget=budget).budget
    with pytest.raises(ValidationError, match=rf"budget\.{goal}\.metric among eval\.accuracy"):
        spec_of(budget=budget)


def test_what_is_stored_is_read_again_as_it_is() -> None:
    """Defaults are written out, and must not be taken for the user's words."""
    like = {**TEXT, "tokenizer": "/d/tokenizer", "separator": "<end>"}
    spec = language_spec(data=like, evaluation={"sets": [named(data=TEXT, max_batches=3)]})
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_specification_of_before_has_no_sets() -> None:
    assert EvaluationSpec.model_validate({"every_steps": 5}).sets == ()
    assert EvaluationSpec.model_validate({"every_steps": 5}).metrics == ()


# ---- what fits the model's data -----------------------------------------------------------------


def test_a_set_for_another_task_is_refused_by_name() -> None:
    message = fault(evaluation={"sets": [named(data=STDLIB)]})
    assert "set 'shifted': expected 'causal_lm' for data 'python_stdlib_bytes'" in message


def test_texts_are_tokenised_as_the_models() -> None:
    like = {**TEXT, "tokenizer": "/d/tokenizer", "separator": "<end>"}
    seen = alike({**TEXT, "path": "/d/b.txt"}, like=like)
    assert (seen.path, seen.tokenizer, seen.separator) == ("/d/b.txt", "/d/tokenizer", "<end>")
    assert alike(like, like=like) == DATA.validate_python(like)
    assert alike(STDLIB, like=STDLIB) == DATA.validate_python(STDLIB)


@pytest.mark.parametrize(
    ("data", "like", "expected"),
    [
        ({**TEXT, "tokenizer": "/d/other"}, TEXT, "the tokenizer of the model's data, 'bytes'"),
        ({**TEXT, "tokenizer": "/d/other"}, STDLIB, "the tokenizer of the model's data, 'bytes'"),
        (
            {**TEXT, "tokenizer": "/d/t", "separator": "a"},
            {**TEXT, "tokenizer": "/d/t", "separator": "b"},
            "the separator of the model's data, 'b'",
        ),
        (
            {**TEXT, "format": "bytes"},
            {**TEXT, "tokenizer": "/d/t"},
            "format text for a tokenizer",
        ),
        ({**TABLE, "standardise": True}, TABLE, "no standardise"),
        ({**TABLE, "standardise": True}, DIGITS, "no standardise"),
    ],
)
def test_what_cannot_be_prepared_like_the_models_data_is_refused(
    data: Any, like: Any, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        alike(data, like=like)


def test_the_specification_says_which_set_it_is_about() -> None:
    evaluation = {"sets": [named("first", STDLIB), named("other", {**TEXT, "tokenizer": "/t"})]}
    with pytest.raises(ValidationError, match="set 'other': expected the tokenizer"):
        language_spec(evaluation=evaluation)


def test_rows_take_what_they_leave_out_from_the_models_data() -> None:
    like = {**TABLE, "columns": ["b", "a"], "standardise": True}
    seen = alike({**TABLE, "standardise": True}, like=like, num_classes=7)
    assert (seen.columns, seen.num_classes, seen.standardise) == (("b", "a"), 7, False)
    own = alike({**TABLE, "columns": ["c"], "num_classes": 2}, like=like, num_classes=7)
    assert (own.columns, own.num_classes) == (("c",), 2)
    images = {**TABLE, "format": "parquet", "image": "x"}
    assert alike(images, like={**images, "image_size": (8, 8)}).image_size == (8, 8)
    assert alike(images, like={**images, "image_channels": 1}).image_channels == 1
    assert alike(images, like=like).columns is None
    assert alike(TABLE, like=DIGITS).columns is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [(CANCER, True), (DIGITS, False), (TABLE, False), ({**TABLE, "standardise": True}, True)],
)
def test_what_is_served_by_mean_and_deviation(data: Any, expected: bool) -> None:
    assert is_standardised(DATA.validate_python(data)) is expected


def test_uploads_are_found_where_they_are_named() -> None:
    data = {"kind": "dataset", "dataset_id": "ds_" + "0" * 26, "target": "y"}
    ids = [data["dataset_id"][:-1] + str(i) for i in range(2)]
    spec = spec_of(
        data={**data, "dataset_id": ids[0]},
        evaluation={"sets": [named("a"), named("b", {**data, "dataset_id": ids[1]})]},
    )
    assert uploads_of(spec) == {
        "/data/dataset_id": ids[0],
        "/evaluation/sets/1/data/dataset_id": ids[1],
    }
    assert uploads_of(spec_of()) == {}
