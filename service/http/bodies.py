"""Bodies of JSON: parsed, checked and validated by a thread, and never more of it than helps.

Whatever takes as long as a body is large would hold up every other request on the event loop.
Python's ``json`` reads lone surrogates, NaN, 1e999 and keys that come twice, which neither UTF-8
nor JSON has, or of which something else than meant would be kept.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from roadless.service.contract.base import UNSTORABLE
from roadless.service.contract.resources import ProblemError
from roadless.service.errors import Invalid
from roadless.service.http.faults import (
    MAX_FAULTS,
    of_validation,
    part_of_pointer,
    refusal,
    unstorable,
)

#: Bodies of users that are parsed at once: parsing holds the interpreter, so two would take twice
#: as long and hold up others twice as much.
PARSING_THREADS = 1
#: Faults of which the first are still listed: they are all made before one can be read.
MAX_FAULTS_MADE = 10_000
#: How JSON writes NUL; behind an odd number of further backslashes it is another text.
_NUL = b"\\u0000"
_NUL_ALONE = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_REPLACEMENT = rb"\1\\ufffd"

#: Where a value is: in which place, and under which key. Pointers of all would be long.
_Place = tuple["_Place", str | int] | None


@dataclass(frozen=True)
class BodyParser:
    """Makes the value of a body.

    Args:
        kind: the type that it has.
        is_strict: numbers must be finite and keys unique, too, and NUL is refused. Our own
            processes, which may be of another version, send numbers that are not finite as text,
            and quote what they could not read.
    """

    kind: Any
    adapter: TypeAdapter[Any]
    is_strict: bool

    def parse(self, content: bytes) -> Any:
        """Return the value; raises Invalid."""
        if self.is_strict:
            return self._checked(content)
        content = without_nul(content)
        try:  # the rest is for the words of a refusal: reports come many times a second
            return self.adapter.validate_json(content)
        except ValidationError:
            return self._checked(content)

    def _checked(self, content: bytes) -> Any:
        body, repeated = _read(content, finds_repeated=self.is_strict)
        is_plain = _NUL not in content and _is_plain(body)
        faults = [] if is_plain else body_faults(body, is_strict=self.is_strict)
        faults += [_repeated(name) for name in repeated[:MAX_FAULTS]]
        if faults:
            raise refusal(faults, num_faults=len(faults))
        return self._validated(body)

    def _validated(self, body: Any) -> Any:
        try:
            return self.adapter.validate_python(body)
        except ValidationError as error:
            num_faults = error.error_count()
            if num_faults > MAX_FAULTS_MADE:
                raise _hopeless(num_faults) from None
            found = error.errors(include_url=False)[:MAX_FAULTS]
        placed = [{**one, "loc": ("body", *one["loc"])} for one in found]
        raise refusal(of_validation(placed, body, self.kind), num_faults=num_faults)


def without_nul(content: bytes) -> bytes:
    """JSON with U+FFFD in the place of NUL, which databases do not store.

    For messages of our own processes: they may quote any file, and the rest of them must arrive.
    """
    return _NUL_ALONE.sub(_REPLACEMENT, content) if _NUL in content else content


def _hopeless(num_faults: int) -> Invalid:
    message = f"expected a body as described by GET /openapi.json, saw {num_faults} faults in it"
    return refusal([ProblemError(pointer="", message=message)], num_faults=1)


def _read(content: bytes, *, finds_repeated: bool) -> tuple[Any, list[str]]:
    """The JSON, and the keys that a mapping has twice, of which it keeps the last.

    Parsing takes twice as long if it ``finds_repeated`` ones.
    """
    repeated: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept = dict(pairs)
        if len(kept) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.extend(name for name, count in counts.items() if count > 1)
        return kept

    try:
        hook = keep if finds_repeated else None
        return json.loads(content, object_pairs_hook=hook), repeated
    except json.JSONDecodeError as error:
        message = f"expected JSON, saw {error.msg!r} at character {error.pos}"
        raise refusal([ProblemError(pointer="", message=message)], num_faults=1) from error
    except (ValueError, RecursionError) as error:
        raise Invalid(f"expected JSON in UTF-8, saw: {error}") from error


def _repeated(name: str) -> ProblemError:
    message = f"expected each key once, saw {_sayable(name)[:80]!r} again"
    return ProblemError(pointer="", message=message)


def _is_plain(body: Any) -> bool:
    """Whether JSON and UTF-8 can say all of it: far faster than a look at each value."""
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def body_faults(body: Any, *, is_strict: bool) -> list[ProblemError]:
    """What cannot be stored, with pointers; not recursive, as a body may be deep.

    ``is_strict``: numbers count too.
    """
    faults: list[ProblemError] = []
    left: list[tuple[_Place, Any]] = [(None, body)]
    while left and len(faults) < MAX_FAULTS:
        place, value = left.pop()
        if message := _fault(value, is_strict=is_strict):
            faults.append(ProblemError(pointer=_sayable(_pointer(place)), message=message))
        left += reversed(list(_inner(place, value)))
        if isinstance(value, dict):
            left += [((place, key), key) for key in value if UNSTORABLE.search(key)]
    return faults


def _inner(place: _Place, value: Any) -> Iterator[tuple[_Place, Any]]:
    pairs: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, str | float | dict | list):
            yield (place, key), inner


def _pointer(place: _Place) -> str:
    parts: list[str] = []
    while place is not None:
        place, key = place
        parts.append(part_of_pointer(key))
    return "".join(reversed(parts))


def _fault(value: Any, *, is_strict: bool) -> str | None:
    if isinstance(value, str) and (found := UNSTORABLE.search(value)):
        return unstorable(found[0])
    if is_strict and isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, saw {value}"
    return None


def _sayable(pointer: str) -> str:
    return pointer.encode(errors="backslashreplace").decode()
