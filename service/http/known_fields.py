"""Which fields a body may have at a place: the way out for a field that it may not have."""

import difflib
import typing
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

_MAX_SHOWN = 20
#: Characters of an unknown field that are compared with those that are known.
_LONGEST_NAME = 80


def suggestion(model: Any, path: Sequence[str | int]) -> str:
    """A clause for an unknown field: what it may have been, or what is known there.

    Args:
        model: the type of the whole body.
        path: the location of a validation error, members of unions included; ends with the field.
    """
    known = known_fields(model, path[:-1])
    close = difflib.get_close_matches(str(path[-1])[:_LONGEST_NAME], known, n=2)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    more = ", ..." if len(known) > _MAX_SHOWN else ""
    return f"known here: {', '.join(known[:_MAX_SHOWN])}{more}" if known else ""


def known_fields(model: Any, path: Sequence[str | int]) -> list[str]:
    """The names of the fields at a place, in order; empty where none have names."""
    models = list(_models_in(model))
    for part in path:
        models = list(_below(models, part))
    return list(dict.fromkeys(name for one in models for name in one.model_fields))


def _below(models: Sequence[type[BaseModel]], part: str | int) -> Iterator[type[BaseModel]]:
    """The models after one more part: an index, a field, or what names a member of a union."""
    if isinstance(part, int):
        yield from models
        return
    having = [one for one in models if part in one.model_fields]
    if having:
        for one in having:
            yield from _models_in(one.model_fields[part].annotation)
        return
    yield from [one for one in models if _is_named(one, part)] or models


def _is_named(model: type[BaseModel], tag: str) -> bool:
    values = (
        value
        for field in model.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
        for value in get_args(field.annotation)
    )
    return model.__name__ == tag or tag in values


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All models that an annotation allows: of unions, lists, and behind ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in get_args(annotation):
        yield from _models_in(inner)
