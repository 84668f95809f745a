"""The least specifications of jobs, and each field that one may have beside them, alone."""

import json
from typing import Any

from hypothesis import strategies as st
from schema_values import values

from roadless.service.contract.base import Spec
from roadless.service.contract.ids import new_id
from roadless.service.contract.job.spec import JobSpec

#: Which of LEAST, the path of a field in it, and a value.
Change = tuple[int, tuple[str, ...], Any]

GPT = {"kind": "preset", "name": "gpt"}
MLP = {"kind": "preset", "name": "mlp"}
LEAST: list[dict[str, Any]] = [
    {"model": model, "data": data, "task": task, "optimizer": {"name": optimizer}}
    for model, data, task, optimizer in (
        (MLP, {"kind": "builtin", "name": "digits"}, "classification", "adamw_schedulefree"),
        (
            MLP,
            {"kind": "files", "format": "csv", "path": "https://h.example/a.csv", "target": "y"},
            "classification",
            "sgd_schedulefree",
        ),
        (GPT, {"kind": "files", "format": "text", "path": "s3://b/a"}, "causal_lm", "adamw"),
        (GPT, {"kind": "huggingface", "path": "a/b", "text": "t"}, "causal_lm", "soap"),
        (
            MLP,
            {"kind": "dataset", "dataset_id": new_id("ds"), "target": "y"},
            "regression",
            "adopt",
        ),
    )
]


def fields_of(least: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """The strategy of each optional field: of the specification, and of each of its parts."""
    spec = JobSpec.model_validate(least)
    found = {(name,): one for name, one in _optional(JobSpec, least).items()}
    for part in JobSpec.model_fields:
        value = getattr(spec, part)
        if isinstance(value, Spec):
            fields = _optional(type(value), least.get(part, {}))
            found |= {(part, name): one for name, one in fields.items()}
    return found


def _optional(kind: type[Spec], given: dict[str, Any]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    defs = schema.get("$defs", {})
    return {
        name: values(one, defs=defs)
        for name, one in schema["properties"].items()
        if name not in given
    }


FIELDS = [fields_of(least) for least in LEAST]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    number = draw(st.integers(0, len(LEAST) - 1))
    path = draw(st.sampled_from(sorted(FIELDS[number])))
    return number, path, draw(FIELDS[number][path])


def with_change(change: Change) -> dict[str, Any]:
    number, (*parts, name), value = change
    spec: dict[str, Any] = json.loads(json.dumps(LEAST[number]))
    inside = spec
    for part in parts:
        inside = inside.setdefault(part, {})
    inside[name] = value
    return spec
