"""Nested state, such as an optimizer's ``state_dict``, as JSON and a flat table of tensors.

Tensors go into the table under a path; the JSON holds the shape of the nest and everything else.
Nothing is pickled, and a round trip gives equal values of equal types.
"""

from collections.abc import Mapping
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def split(value: Any, *, path: str = "") -> tuple[Any, Tensors]:
    """Return the JSON of a nest of dicts, lists, tuples, tensors and plain values, and its tensors.

    Keys are strings or integers. Raises TypeError, naming the path, for anything else.
    """
    tensors: Tensors = {}
    return _encoded(value, path, tensors), tensors


def join(encoded: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the nest that ``split`` took apart; raises KeyError for a tensor that is missing."""
    match encoded:
        case {"tensor": path}:
            return tensors[path]
        case {"dict": items}:
            return {key: join(value, tensors) for key, value in items}
        case {"list": items}:
            return [join(value, tensors) for value in items]
        case {"tuple": items}:
            return tuple(join(value, tensors) for value in items)
    return encoded


def _encoded(value: Any, path: str, tensors: Tensors) -> Any:
    match value:
        case torch.Tensor():
            tensors[path] = value
            return {"tensor": path}
        case dict():
            keyed = [(_key(key, path), item) for key, item in value.items()]
            items = [[key, _encoded(item, f"{path}/{key}", tensors)] for key, item in keyed]
            return {"dict": items}
        case list() | tuple():
            name = "list" if isinstance(value, list) else "tuple"
            encoded = [_encoded(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
            return {name: encoded}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{path}: expected a tensor or a plain value, saw {type(value).__name__}")


def _key(key: Any, path: str) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise TypeError(f"{path}: expected a string or an integer as key, saw {key!r}")
