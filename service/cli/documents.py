"""Files that users write: JSON, or YAML with the values that JSON has.

YAML makes more of a text than JSON can say: dates, infinities, sets, bytes, keys that are numbers.
Such a value is refused with its line, since it was almost always meant as text.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_SURROGATE = re.compile("[\ud800-\udfff]")


class DocumentError(Exception):
    """A file or an argument is no such document; the message is one line that names the place."""


class _Loader(yaml.SafeLoader):
    """Values of JSON only; keys are text, and each stands once in its mapping."""

    def refuse(self, node: yaml.Node) -> Any:
        """Raise for a value that JSON does not have."""
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        value = f" {node.value}" if isinstance(node, yaml.ScalarNode) else ""
        raise _Refused(
            node, f"expected a value that JSON has, saw {kind}{value}", "quote it to have text"
        )

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A finite number."""
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise _Refused(node, f"expected a finite number, saw {node.value}")
        return value

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        """A text that UTF-8 can say: JSON's escapes of emoji are two halves to YAML."""
        text = super().construct_yaml_str(node).encode("utf-16", "surrogatepass")
        try:
            return text.decode("utf-16")
        except UnicodeDecodeError:
            raise _Refused(node, "expected text, saw half of a pair of surrogates") from None

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; PyYAML (6.0) raises ValueError and KeyError where a tag lies."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, ArithmeticError):
            return self.refuse(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of text to values."""
        self._check_keys(node)
        return super().construct_mapping(node, deep=deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                kind = key.tag.rpartition(":")[2]
                value = f" {key.value}" if isinstance(key, yaml.ScalarNode) else ""
                raise _Refused(key, f"expected text as a key, saw {kind}{value}", "quote it")
            if key.value in seen:
                raise _Refused(key, f"expected each key once, saw {key.value!r} again")
            seen.add(key.value)


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, node: yaml.Node, problem: str, advice: str = "") -> None:
        text = f"{problem}; {advice}" if advice else problem
        super().__init__(problem=text, problem_mark=node.start_mark)


for _kind in ("binary", "omap", "pairs", "set", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.refuse)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)
_Loader.add_constructor(None, _Loader.refuse)


def load(file: Path) -> Mapping[str, Any]:
    """Return the mapping in a file; raises DocumentError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DocumentError(f"expected a readable file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"expected YAML or JSON in {file}, saw bytes that are not UTF-8 at {error.start}"
        ) from error
    document = parse(text, source=str(file))
    if not isinstance(document, dict):
        seen = "nothing" if document is None else type(document).__name__
        raise DocumentError(f"expected a mapping in {file}, saw {seen}")
    return document


def parse(text: str, *, source: str) -> Any:
    """Return the value of a text in YAML or JSON; raises DocumentError, which names ``source``."""
    try:
        document = _parsed(text)
        # Which notices a value that contains itself, among others.
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
        return document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DocumentError(f"{source}{place}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        raise DocumentError(f"expected YAML or JSON in {source}: {_one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(
            f"expected values that JSON has in {source}: {_one_line(error)}"
        ) from error


def _parsed(text: str) -> Any:
    """JSON as JSON, which YAML does not read alike; everything else as YAML."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except _NotYaml:
        raise
    except (ValueError, RecursionError):
        return yaml.load(text, _Loader)


class _NotYaml(ValueError):
    """What JSON has found wrong, and YAML would not."""


def _no_constant(word: str) -> Any:
    raise _NotYaml(f"expected a finite number, saw {word}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotYaml(f"expected each key once, saw {twice!r} again")
    for key, value in pairs:
        _require_sayable(key, value)
    return found


def _require_sayable(key: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotYaml(f"expected a finite number as {key!r}, saw one that is too large")
    if any(isinstance(text, str) and _SURROGATE.search(text) for text in (key, value)):
        raise _NotYaml(f"expected text as {key!r}, saw half of a pair of surrogates")


def _problem(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _Refused):
        return str(error.problem)
    known = " ".join(filter(None, (error.context, error.problem)))
    return f"expected YAML or JSON, saw an error {_one_line(known)}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
