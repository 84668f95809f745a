"""What holds for every request: known query parameters, and text and numbers that can be stored.

Frameworks let these pass: a misspelt query parameter would ask for something else than meant, and
Python's ``json`` reads lone surrogates, NaN and 1e999, which neither UTF-8 nor JSON has.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from roadless.service.contract.resources import ProblemError
from roadless.service.errors import Invalid

#: Where users' requests are strict; messages of our own processes come from other versions too.
_USERS = "/v1/"
_JSON = re.compile(r"application/(?:[^;]+\+)?json\s*(?:;|$)", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Half of a pair, as JSON escapes it or as three bytes, which Python's ``json`` reads too.
_SURROGATE_BYTES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_MAX_FAULTS = 20


async def check_request(request: Request) -> None:
    """Raise Invalid, with a pointer, for a query or body that no route takes."""
    is_users = request.url.path.startswith(_USERS)
    faults = list(_query_faults(request)) if is_users else []
    if is_users and request.method == "POST" and not _takes_body(request):
        faults += _superfluous(await request.body())
    if _takes_json(request) and (content := await request.body()):
        body = await request.json()  # parsed by the framework already, and kept
        if _may_hold_faults(content, body, is_users=is_users):
            faults += _body_faults(body, is_strict=is_users)
        faults += _repeated_keys(content) if is_users else ()
    if faults:
        detail = "; ".join(f"{fault.pointer or 'body'}: {fault.message}" for fault in faults[:3])
        raise Invalid(detail, errors=tuple(faults[:_MAX_FAULTS]))


def _takes_json(request: Request) -> bool:
    """Whether the route reads a body of JSON, which has then been read and parsed already."""
    is_json = _JSON.match(request.headers.get("content-type", "")) is not None
    return is_json and _takes_body(request)


def _takes_body(request: Request) -> bool:
    route = request.scope["route"]
    return isinstance(route, APIRoute) and route.body_field is not None


def _superfluous(body: bytes) -> list[ProblemError]:
    """A body where none is taken: what it asks for would not be done. Nothing in it is as good."""
    if body.strip() in (b"", b"{}", b"null"):
        return []
    seen = body[:80].decode(errors="backslashreplace")
    return [ProblemError(pointer="", message=f"expected no body for this action, saw {seen!r}")]


def _may_hold_faults(content: bytes, body: Any, *, is_users: bool) -> bool:
    """Whether to look closely; ranks report many times a second, and get the cheaper question."""
    return not _is_plain(body) if is_users else _SURROGATE_BYTES.search(content) is not None


# ---- the query ----------------------------------------------------------------------------------


def _query_faults(request: Request) -> Iterator[ProblemError]:
    if not request.scope["query_string"]:
        return
    known, seen = _known_parameters(request), set()
    for pair in filter(None, request.scope["query_string"].split(b"&")):
        name, _, value = pair.replace(b"+", b" ").partition(b"=")
        text, is_text = _decoded(name)
        pointer = f"query:{text}"
        if not (is_text and _decoded(value)[1]):
            yield ProblemError(pointer=pointer, message=f"expected UTF-8, saw {_shown(pair)}")
        elif text not in known:
            allowed = ", ".join(sorted(known)) or "no parameters"
            message = f"expected {allowed}; saw {text[:80]!r}, which is not known here"
            yield ProblemError(pointer=pointer, message=message)
        elif text in seen:
            yield ProblemError(pointer=pointer, message=f"expected {text} once, saw it again")
        seen.add(text)


def _decoded(part: bytes) -> tuple[str, bool]:
    """The text of a percent-encoded part, and whether it is one."""
    raw = unquote_to_bytes(part)
    try:
        return raw.decode(), True
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), False


def _shown(pair: bytes) -> str:
    return repr(pair.decode("ascii", "backslashreplace")[:80])


def _known_parameters(request: Request) -> set[str]:
    route = request.scope["route"]
    return set(_names(route.dependant)) if isinstance(route, APIRoute) else set()


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _names(inner)


# ---- the body -----------------------------------------------------------------------------------


def _is_plain(body: Any) -> bool:
    """Whether JSON and UTF-8 can say all of it: far faster than a look at each value."""
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _body_faults(body: Any, *, is_strict: bool) -> list[ProblemError]:
    """What cannot be stored, with pointers; not recursive, as a body may be deep.

    ``is_strict``: numbers count too; our own processes send those that are not finite as text.
    """
    faults: list[ProblemError] = []
    left: list[tuple[str, Any]] = [("", body)]
    while left and len(faults) < _MAX_FAULTS:
        pointer, value = left.pop()
        if message := _fault(value, is_strict=is_strict):
            faults.append(ProblemError(pointer=_sayable(pointer), message=message))
        left += reversed(list(_inner(pointer, value)))
        if isinstance(value, dict):
            left += [(_below(pointer, key), key) for key in value if _SURROGATE.search(key)]
    return faults


def _repeated_keys(body: bytes) -> Iterator[ProblemError]:
    """Keys that a mapping has twice, of which a parser keeps only the last."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.extend(name for name, count in counts.items() if count > 1)

    json.loads(body, object_pairs_hook=note)
    for name in repeated[:_MAX_FAULTS]:
        message = f"expected each key once, saw {_sayable(name)[:80]!r} again"
        yield ProblemError(pointer="", message=message)


def _inner(pointer: str, value: Any) -> Iterator[tuple[str, Any]]:
    pairs: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, str | float | dict | list):
            yield _below(pointer, key), inner


def _below(pointer: str, key: str | int) -> str:
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _fault(value: Any, *, is_strict: bool) -> str | None:
    if isinstance(value, str) and (found := _SURROGATE.search(value)):
        return f"expected text that UTF-8 can express, saw the lone surrogate {found[0]!a}"
    if is_strict and isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, saw {value}"
    return None


def _sayable(pointer: str) -> str:
    return pointer.encode(errors="backslashreplace").decode()
