"""The models of the contract: sizes are written out, sources are one, and tasks fit."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from roadless.service.contract.ids import new_id
from roadless.service.contract.job import models
from roadless.service.contract.job.models import ModelSpec
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.job.tasks import Task

MODEL: TypeAdapter[Any] = TypeAdapter(ModelSpec)
GPT = {"kind": "preset", "name": "gpt"}
CAUSAL = {"kind": "transformers", "auto_class": "AutoModelForCausalLM", "context": 8}
IMAGES = {"kind": "transformers", "auto_class": "AutoModelForImageClassification"}
GPT2 = {"model_type": "gpt2"}
FACTORY = {"kind": "entry_point", "factory": "ours.models:make"}
START = {"kind": "checkpoint", "checkpoint_id": new_id("ckpt")}


def parse(model: dict[str, Any]) -> Any:
    return MODEL.validate_python(model)


def refused(model: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        parse(model)
    return str(caught.value)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", models.GPT_SIZES)
def test_a_size_is_written_out_and_comes_back_the_same(size):
    model = parse({**GPT, "size": size})
    assert model.model_dump().items() >= models.GPT_SIZES[size].items()
    assert model.context == 1024
    assert MODEL.validate_json(MODEL.dump_json(model)) == model


def test_a_size_takes_another_context_but_no_other_shape():
    assert parse({**GPT, "size": "124M", "context": 256}).context == 256
    assert parse({**GPT, "size": "124M", "layers": 12}).layers == 12
    message = "expected layers = 12 with size '124M', saw 6"
    assert message in refused({**GPT, "size": "124M", "layers": 6})


@pytest.mark.parametrize("size", ["1T", 124, ["124M"], {}])
def test_an_unknown_size_is_refused(size):
    assert "size" in refused({**GPT, "size": size})


# ---- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"config": {}},
        {"config": GPT2, "pretrained": "/models/a"},
        {"pretrained": "/models/a", "hub_id": "gpt2"},
    ],
)
def test_a_transformers_model_has_exactly_one_source(sources):
    assert "exactly one of config, pretrained and hub_id" in refused({**CAUSAL, **sources})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {"n_layer": 2}}, "expected config.model_type"),
        ({"config": {"model_type": 7}}, "expected config.model_type"),
        ({"config": GPT2, "revision": "main"}, "expected revision with hub_id only"),
        ({"pretrained": "models/a"}, "pretrained"),
        ({"pretrained": "/a\0b"}, "pretrained"),
        ({"hub_id": "../../etc"}, "hub_id"),
        ({"hub_id": "a/b/c"}, "hub_id"),
        ({"hub_id": "https://evil.example/a"}, "hub_id"),
        ({"hub_id": "gpt2", "revision": "--upload-pack"}, "revision"),
        ({"config": GPT2, "auto_class": "AutoModel"}, "auto_class"),
        ({"config": GPT2, "trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(fields, message):
    assert message in refused({**CAUSAL, **fields})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, "x" * 70_000])
def test_free_fields_are_json_within_a_bound(value):
    assert "config" in refused({**CAUSAL, "config": {**GPT2, "field": value}})
    assert "arguments" in refused({**FACTORY, "arguments": {"field": value}})


@pytest.mark.parametrize("name", ["make", "a:b:c", "a.b", ":f", "a/b:c", "a b:c", "a:f()", ".a:b"])
def test_an_entry_point_is_a_module_and_a_function(name):
    assert "factory" in refused({**FACTORY, "factory": name})


# ---- tasks ---------------------------------------------------------------------------------------

CASES = [
    ({"kind": "preset", "name": "linear"}, {"classification", "regression"}),
    ({"kind": "preset", "name": "resnet"}, {"classification", "regression"}),
    ({"kind": "preset", "name": "vit"}, {"classification", "regression"}),
    (GPT, {"causal_lm"}),
    ({**CAUSAL, "config": GPT2}, {"causal_lm"}),
    ({**IMAGES, "config": {"model_type": "vit"}}, {"classification", "regression"}),
    (FACTORY, {"classification", "regression", "causal_lm"}),
    (START, {"classification", "regression", "causal_lm"}),
    ({**START, "architecture": GPT}, {"causal_lm"}),
]


@pytest.mark.parametrize(("model", "tasks"), CASES)
def test_a_model_can_do_some_tasks(model, tasks):
    assert models.tasks_of(parse(model)) == tasks
    assert tasks <= set(get_args(Task))


@pytest.mark.parametrize(
    ("model", "context"),
    [
        ({**GPT, "context": 32}, 32),
        ({**CAUSAL, "config": GPT2}, 8),
        ({**FACTORY, "context": 9}, 9),
        ({**START, "architecture": {**GPT, "context": 32}}, 32),
        (START, None),
        ({"kind": "preset", "name": "mlp"}, None),
    ],
)
def test_a_language_model_says_how_long_its_samples_are(model, context):
    assert models.context_of(parse(model)) == context


@pytest.mark.parametrize("model", [{**CAUSAL, "config": GPT2, "context": None}, FACTORY])
def test_a_language_model_of_others_needs_a_context(model):
    job = {
        "model": model,
        "data": {"kind": "builtin", "name": "python_stdlib_bytes"},
        "task": "causal_lm",
        "optimizer": {"name": "sgd_schedulefree"},
    }
    with pytest.raises(ValidationError, match=r"expected model\.context for"):
        JobSpec.model_validate(job)
    JobSpec.model_validate({**job, "model": {**model, "context": 16}})


@given(st.sampled_from([model for model, _ in CASES]))
def test_every_model_comes_back_whole(model):
    parsed = parse(model)
    assert MODEL.validate_json(MODEL.dump_json(parsed)) == parsed
