"""What is wrong with a request, fault by fault: where, what was expected and what was seen.

However much is wrong, an answer says a bounded part of it and how much there is in all.
"""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from roadless.service.contract.resources import ProblemError
from roadless.service.errors import Invalid
from roadless.service.http.known_fields import suggestion

#: Faults that one answer lists.
MAX_FAULTS = 100
#: Of them, those that its detail repeats.
_IN_DETAIL = 3
#: Characters of a value that was seen, and of a key in a pointer.
_SEEN, _LONGEST_KEY = 80, 200


class _Short(reprlib.Repr):
    """``repr`` of the beginning of a value, which may be as large as a request."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxother = 3, 12, 8, _SEEN

    def repr_str(self, x: str, _level: int) -> str:
        return repr(x[: _SEEN + 1])

    def repr_bytes(self, x: bytes, _level: int) -> str:
        return repr(x[: _SEEN + 1])

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """As the base class, which would sort all keys first."""
        if level <= 0:
            return "{...}"
        kept = [key for key, _ in zip(x, range(self.maxdict), strict=False)]
        parts = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in kept]
        return "{" + ", ".join(parts + ["..."] * (len(x) > len(kept))) + "}"


_REPR = _Short()


def refusal(faults: Sequence[ProblemError], *, num_faults: int) -> Invalid:
    """The error that lists the faults, the first of ``num_faults``."""
    listed = tuple(faults[:MAX_FAULTS])
    said = [f"{fault.pointer or 'body'}: {fault.message}" for fault in listed[:_IN_DETAIL]]
    if num_faults > len(listed):
        said.append(f"{num_faults} faults in all, of which the first {len(listed)} are listed")
    return Invalid("; ".join(said), errors=listed)


def of_validation(
    errors: Iterable[Mapping[str, Any]], body: Any, body_type: Any
) -> list[ProblemError]:
    """The faults that validation found; ``body_type``: what the body was to be."""
    return [_fault(one, body, body_type) for one in errors]


def _fault(error: Mapping[str, Any], body: Any, body_type: Any) -> ProblemError:
    where, *path = error["loc"]
    if where != "body":
        return ProblemError(pointer=f"{where}:{'/'.join(map(str, path))}", message=_explain(error))
    pointer = pointer_of(path, body, is_missing=error["type"] == "missing")
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        pointer += "/" + str(error["ctx"]["discriminator"]).strip("'")
    message = _explain(error)
    if error["type"] == "extra_forbidden" and (hint := suggestion(body_type, path)):
        message += f"; {hint}"
    return ProblemError(pointer=pointer, message=message)


def _explain(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if "saw" in message or error["type"] == "missing":
        return message
    return f"{message}; saw {short(error.get('input'))}"


def unstorable(character: str) -> str:
    """The message for a character that no text may hold."""
    if character == "\0":
        return "expected text without NUL, which databases do not store, saw '\\x00'"
    return f"expected text that UTF-8 can express, saw the lone surrogate {character!a}"


def short(value: Any) -> str:
    """``repr`` of a value, cut."""
    text = _REPR.repr(value)
    return text if len(text) <= _SEEN else f"{text[: _SEEN - 3]}..."


def pointer_of(path: Sequence[str | int], body: Any, *, is_missing: bool) -> str:
    """The RFC 6901 pointer of a validation error's location.

    Validation names the member of a union that it tried; such a name is no part of the body and is
    left out. Where something ``is_missing`` the last part is kept, since it names what is.
    """
    parts = []
    for index, part in enumerate(path):
        if _has(body, part):
            body = body[part]
        elif not (is_missing and index == len(path) - 1):
            continue
        parts.append(part_of_pointer(part))
    return "".join(parts)


def part_of_pointer(key: str | int) -> str:
    """A key in a pointer; cut, since a key may be as long as a body."""
    return "/" + str(key)[:_LONGEST_KEY].replace("~", "~0").replace("/", "~1")


def _has(body: Any, part: str | int) -> bool:
    if isinstance(body, dict):
        return part in body
    return isinstance(body, list) and isinstance(part, int) and 0 <= part < len(body)
