"""What holds for every request: no NUL in its path; and of users known query parameters, and no
body that nobody reads.

Frameworks let these pass, though they ask for something else than is done.
"""

from collections.abc import Iterator
from itertools import islice
from urllib.parse import unquote_to_bytes

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from roadless.service.contract.base import UNSTORABLE
from roadless.service.contract.resources import ProblemError
from roadless.service.http.faults import MAX_FAULTS, refusal, unstorable
from roadless.service.http.middleware import is_users


async def check_request(request: Request) -> None:
    """Raise Invalid, with a pointer, for a path, query or body that no route takes."""
    faults = list(_path_faults(request))
    if is_users(request.url.path):  # messages of our own processes come from other versions too
        faults += await _users_faults(request)
    if faults:
        raise refusal(faults, num_faults=len(faults))


def _path_faults(request: Request) -> Iterator[ProblemError]:
    for name, value in request.path_params.items():
        if found := UNSTORABLE.search(str(value)):
            yield ProblemError(pointer=f"path:{name}", message=unstorable(found[0]))


async def _users_faults(request: Request) -> list[ProblemError]:
    faults = list(islice(_query_faults(request), MAX_FAULTS))
    if request.method == "POST" and not _takes_body(request):
        faults += _superfluous(await request.body())
    return faults


def _takes_body(request: Request) -> bool:
    route = request.scope["route"]
    return isinstance(route, APIRoute) and route.body_field is not None


def _superfluous(body: bytes) -> list[ProblemError]:
    """A body where none is taken: what it asks for would not be done. Nothing in it is as good."""
    if body.strip() in (b"", b"{}", b"null"):
        return []
    seen = body[:80].decode(errors="backslashreplace")
    return [ProblemError(pointer="", message=f"expected no body for this action, saw {seen!r}")]


# ---- the query ----------------------------------------------------------------------------------


def _query_faults(request: Request) -> Iterator[ProblemError]:
    if not request.scope["query_string"]:
        return
    known, seen = _known_parameters(request), set()
    for pair in filter(None, request.scope["query_string"].split(b"&")):
        name, _, value = pair.replace(b"+", b" ").partition(b"=")
        text, is_text = _decoded(name)
        content, is_content_text = _decoded(value)
        pointer = f"query:{text}"
        if not (is_text and is_content_text):
            yield ProblemError(pointer=pointer, message=f"expected UTF-8, saw {_shown(pair)}")
        elif text not in known:
            allowed = ", ".join(sorted(known)) or "no parameters"
            message = f"expected {allowed}; saw {text[:80]!r}, which is not known here"
            yield ProblemError(pointer=pointer, message=message)
        elif text in seen:
            yield ProblemError(pointer=pointer, message=f"expected {text} once, saw it again")
        elif found := UNSTORABLE.search(content):
            yield ProblemError(pointer=pointer, message=unstorable(found[0]))
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
