"""Writes docs/spec.md from the contract itself: every field of a job with bounds and default.

Run ``.venv/bin/python docs/make_spec.py`` after a change of a specification in
``service/contract``; a test compares the two.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roadless.service.contract.job.spec import JobSpec

_TARGET = Path(__file__).with_name("spec.md")
_NULL = {"type": "null"}
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "{} or more characters",
    "maxLength": "up to {} characters",
    "minItems": "{} or more items",
    "maxItems": "up to {} items",
    "maxProperties": "up to {} entries",
}
_INTRODUCTION = """\
# The job specification

What `POST /v1/jobs` and `roadless submit` take, as JSON or YAML. Unknown fields and numbers that
are not finite are refused with a pointer to the field. Only `model`, `data`, `task` and
`optimizer` have no default. Written from `service/contract/` by `.venv/bin/python
docs/make_spec.py`; do not edit by hand.

Five rules join fields:

- `task` must be one that the model can learn ([models.md](models.md) has the table) and that the
  data has targets for.
- `parallelism.num_workers`, times `training.accumulation_steps`, must divide `training.batch_size`.
  An elastic job runs on those numbers between `min_workers` and `max_workers` that divide it and
  are multiples of `replicas`; a smaller gang computes more parts, none larger than at full size.
- `width` of a `gpt` must be a multiple of 2 * `heads`.
- `max_gpu_seconds` needs GPUs, and `max_tokens` data with tokens.
- A `budget` names at least one limit; `null` makes an open-ended job. The first limit that is
  reached ends the job.
"""


def render() -> str:
    """Return the page: one section a part, in the order in which a reader meets them."""
    schema = JobSpec.model_json_schema()
    parts = {"JobSpec": schema, **schema["$defs"]}
    sections = (_section(name, parts[name]) for name in _in_order("JobSpec", parts))
    return "\n".join([_INTRODUCTION, *sections])


def _in_order(name: str, parts: dict[str, Any]) -> list[str]:
    found = [name]
    for reference in _references(parts[name]["properties"]):
        found += [part for part in _in_order(reference, parts) if part not in found]
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for value in node.values():
            yield from _references(value)
    if isinstance(node, list):
        for value in node:
            yield from _references(value)


def _section(name: str, part: dict[str, Any]) -> str:
    rows = [
        _row(field, schema, is_required=field in part.get("required", ()))
        for field, schema in sorted(part["properties"].items(), key=_tags_first)
    ]
    head = ["| field | type | bounds | default | meaning |", "|---|---|---|---|---|"]
    text = part["description"].replace("``", "`").replace(":class:", "")
    return "\n".join([f"## {name}\n", f"{text}\n", *head, *rows, ""])


def _tags_first(item: tuple[str, dict[str, Any]]) -> bool:
    field, _ = item
    return field not in ("kind", "name")


def _row(field: str, schema: dict[str, Any], *, is_required: bool) -> str:
    default = "required" if is_required else _default(schema)
    cells = (f"`{field}`", _type(schema), _bounds(schema), default, schema.get("description", ""))
    return f"| {' | '.join(cells)} |"


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return "`{}`"
    value = schema["default"]
    return "its own defaults" if isinstance(value, dict) else f"`{json.dumps(value)}`"


def _type(schema: dict[str, Any]) -> str:
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"const": value}:
            return f"`{json.dumps(value)}`"
        case {"enum": values}:
            return " or ".join(f"`{json.dumps(value)}`" for value in values)
        case {"oneOf": choices} | {"anyOf": choices}:
            return " or ".join(_type(choice) for choice in choices)
        case {"prefixItems": items}:
            return f"list of {len(items)}: {' and '.join(_bounded_type(item) for item in items)}"
        case {"items": items}:
            return f"list of {_bounded_type(items)}"
        case {"propertyNames": keys, "additionalProperties": values}:
            return f"map of {_bounded_type({'type': 'string', **keys})} to {_bounded_type(values)}"
        case _:
            return str(schema["type"])


def _bounded_type(schema: dict[str, Any]) -> str:
    bounds = _bounds(schema)
    return f"{_type(schema)} ({bounds})" if bounds else _type(schema)


def _bounds(schema: dict[str, Any]) -> str:
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice != _NULL]
    found = (
        text.format(choice[key])
        for choice in choices
        for key, text in _BOUNDS.items()
        if key in choice and "prefixItems" not in choice
    )
    return ", ".join(found)


if __name__ == "__main__":
    _TARGET.write_text(render())
