"""Values that a JSON schema of pydantic allows, as strategies of hypothesis."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_WIDE = 2**40
_TEXTS = st.text(st.sampled_from("aZ0_.:/*-[] é"), max_size=12)


def values(schema: Schema, *, defs: Schema) -> st.SearchStrategy[Any]:
    """What the schema allows, near its edges more often than a user would be."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: values(defs[name], defs=defs))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of([values(one, defs=defs) for one in schema[several]])
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer" | "number":
            return _numbers(schema)
        case "string":
            return _strings(schema)
        case "array":
            return _arrays(schema, defs=defs)
        case "object":
            return _objects(schema, defs=defs)
        case _:
            return st.none() | st.integers(0, 9) | _TEXTS


def _numbers(schema: Schema) -> st.SearchStrategy[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -_WIDE))
    high = schema.get("maximum", schema.get("exclusiveMaximum", _WIDE))
    whole = st.integers(
        int(low) + ("exclusiveMinimum" in schema), int(high) - ("exclusiveMaximum" in schema)
    )
    if schema["type"] == "integer":
        return whole
    return st.floats(
        low,
        high,
        exclude_min="exclusiveMinimum" in schema,
        exclude_max="exclusiveMaximum" in schema,
    )


def _strings(schema: Schema) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    low, high = schema.get("minLength", 0), schema.get("maxLength", 12)
    return st.text(st.sampled_from("aZ0_.:/*-[] é"), min_size=low, max_size=max(low, min(high, 12)))


def _arrays(schema: Schema, *, defs: Schema) -> st.SearchStrategy[list[Any]]:
    if "prefixItems" in schema:
        return st.tuples(*(values(one, defs=defs) for one in schema["prefixItems"])).map(list)
    low = schema.get("minItems", 0)
    return st.lists(
        values(schema.get("items", {}), defs=defs),
        min_size=low,
        max_size=max(low, min(schema.get("maxItems", 3), 3)),
    )


def _objects(schema: Schema, *, defs: Schema) -> st.SearchStrategy[Schema]:
    fields = schema.get("properties")
    if fields is None:
        return st.dictionaries(st.text("abc", min_size=1, max_size=3), _TEXTS, max_size=2)
    required = set(schema.get("required", ()))
    each = {name: values(one, defs=defs) for name, one in fields.items()}
    return st.fixed_dictionaries(
        {name: each[name] for name in each if name in required},
        optional={name: each[name] for name in each if name not in required},
    )
