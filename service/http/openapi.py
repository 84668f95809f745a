"""GET /openapi.json: what FastAPI describes, and who may call, what is refused, and which headers.

By rule and not route by route: a token, a body, an id in the path or a key says which refusals may
come. What only the state of a thing can refuse is named beside its route, with `may_refuse`.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import RouteContext, iter_route_contexts

from roadless.service.contract.resources import Problem
from roadless.service.errors import ServiceError
from roadless.service.http.dependencies import Db
from roadless.service.http.doors import Door, doors_of
from roadless.service.http.middleware import is_users
from roadless.service.http.paging import After
from roadless.service.http.problems import MEDIA_TYPE

#: A part of a description, as JSON has it.
Json = dict[str, Any]

_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
#: The first class of each status: its title and headers are those of the others.
_ERRORS = {error.status: error for error in reversed(ServiceError.__subclasses__())}
_TEXT = {"type": "string"}
_HEADERS: Mapping[str, Json] = {
    "x-request-id": {"description": "what the log names the request", "schema": _TEXT},
    "ETag": {"description": "the version, quoted", "schema": _TEXT},
    "Location": {"description": "where it is", "schema": _TEXT},
    "Idempotent-Replayed": {
        "description": "only where this is the answer to an earlier request with the key",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {"description": "seconds", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "Bearer", "schema": _TEXT},
    "Accept-Ranges": {"description": "bytes", "schema": _TEXT},
    "Content-Range": {"description": "which bytes of how many", "schema": _TEXT},
    "Content-Disposition": {"description": "the file's name", "schema": _TEXT},
    "Accept-Encoding": {"description": "identity", "schema": _TEXT},
    "Upload-Offset": {"description": "bytes that have arrived", "schema": _TEXT},
    "Upload-Complete": {
        "description": "whether the file is stored",
        "schema": {"type": "string", "enum": ["?0", "?1"]},
    },
    "Connection": {"description": "close", "schema": _TEXT},
}
#: Statuses whose answers have no content.
_EMPTY = ("204", "303", "304")
_ID = re.compile(r"\{(\w+_id)\}")
_OWN_ATTEMPT = "attempt_id"

#: Bytes, and an upload of them.
BYTES_CONTENT: Json = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}
BYTES_BODY: Json = {"requestBody": {"required": True, "content": BYTES_CONTENT}}


def may_refuse(*statuses: int) -> dict[int | str, Json]:
    """``responses`` of a route whose state may refuse, beside what its kind of route may answer."""
    return {status: {"description": _ERRORS[status].title} for status in statuses}


def with_headers(
    status: int, *names: str, description: str, content: Json | None = None
) -> dict[int | str, Json]:
    """``responses`` of a route that answers with this status and these headers."""
    headers = {name: _reference(name) for name in names}
    told = {} if content is None else {"content": content}
    return {status: {"description": description, "headers": headers, **told}}


def install(app: FastAPI, *, tokens: Mapping[Door, str]) -> None:
    """Have the app describe itself so. ``tokens``: what each door wants, for instance ``user``."""
    # As FastAPI's manual has it.
    app.openapi = functools.cache(functools.partial(_described, app, tokens))  # type: ignore[method-assign]
    app.add_route("/openapi.json", _Document(app).answer, name="openapi", include_in_schema=False)


class _Document:
    """Answers with the description, which a thread makes once: it takes a second."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._content: bytes | None = None
        self._making = anyio.Lock()

    async def answer(self, _request: Request) -> Response:
        """Whoever asks while it is made waits for that one."""
        async with self._making:
            if self._content is None:
                self._content = await anyio.to_thread.run_sync(self._made)
        return Response(self._content, media_type="application/json")

    def _made(self) -> bytes:
        return json.dumps(self._app.openapi(), ensure_ascii=False).encode()


def _described(app: FastAPI, tokens: Mapping[Door, str]) -> Json:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for route in iter_route_contexts(app.routes):
        for method in (route.methods or ()) if getattr(route, "include_in_schema", False) else ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None and hasattr(route, "dependant"):
                _complete(operation, _Kind.of(route, method, operation), tokens)
    components = document["components"]
    components["schemas"] |= _schemas_of_problems()
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["headers"] = dict(_HEADERS)
    components["securitySchemes"] = {name: _scheme(name) for name in tokens.values()}
    return document


def _schemas_of_problems() -> Json:
    schema = Problem.model_json_schema(
        mode="serialization", ref_template="#/components/schemas/{model}"
    )
    return {**schema.pop("$defs"), "Problem": schema}


def _scheme(name: str) -> Json:
    return {"type": "http", "scheme": "bearer", "description": f"a token of the kind {name}"}


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What of a route decides what may come in answer.

    ``calls``: the dependencies; ``parameters``: their names in small letters.
    """

    path: str
    method: str
    doors: tuple[Door, ...]
    calls: frozenset[Any]
    parameters: frozenset[str]
    reads_a_body: bool

    @classmethod
    def of(cls, route: RouteContext, method: str, operation: Json) -> Self:
        """``operation``: as FastAPI describes it."""
        path = str(route.path_format)
        return cls(
            path=path,
            method=method,
            doors=tuple(doors_of(route.dependant)),
            calls=frozenset(one.call for one in _all(route.dependant)),
            parameters=frozenset(one["name"].lower() for one in operation.get("parameters", [])),
            # Actions read a body to refuse it.
            reads_a_body="requestBody" in operation or (method == "POST" and is_users(path)),
        )

    @property
    def is_of_ranks(self) -> bool:
        """Whether ranks ask there, with the token of the attempt in the path."""
        return _OWN_ATTEMPT in _ID.findall(self.path)

    @property
    def may_miss(self) -> bool:
        """Whether the path names something that may not be there. Ranks name what they make."""
        is_upload = self.is_of_ranks and self.method in ("PUT", "HEAD")
        others = set(_ID.findall(self.path)) - {_OWN_ATTEMPT}
        return bool(self.doors and others) and not is_upload

    def needs(self, dependency: Any) -> bool:
        """Whether the route depends on it, which is ``Annotated``."""
        return get_args(dependency)[1].dependency in self.calls


def _all(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _all(inner)


def _refusals(kind: _Kind) -> Iterator[int]:
    """Statuses of the errors that routes of this kind may answer."""
    rules: Mapping[int, bool] = {
        401: bool(kind.doors),
        404: kind.may_miss or kind.needs(After),
        408: kind.reads_a_body,
        409: "idempotency-key" in kind.parameters or kind.is_of_ranks,
        412: "if-match" in kind.parameters,
        413: kind.reads_a_body,
        415: kind.reads_a_body,
        416: "range" in kind.parameters,
        422: is_users(kind.path) or bool(kind.parameters) or kind.reads_a_body,
        503: bool(kind.doors) or kind.needs(Db),
    }
    yield from (status for status, comes in rules.items() if comes)


def _complete(operation: Json, kind: _Kind, tokens: Mapping[Door, str]) -> None:
    operation["security"] = [{tokens[door]: []} for door in kind.doors]
    if missing := _undeclared(operation, kind):
        operation["parameters"] = [*missing, *operation.get("parameters", [])]
    responses = operation["responses"]
    responses.pop("422", None)
    for status in _refusals(kind):
        responses.setdefault(str(status), {"description": _ERRORS[status].title})
    if "if-none-match" in kind.parameters:
        responses["304"] = {"description": "not changed since"}
    for status, response in responses.items():
        _complete_response(response, status, kind)
    operation["responses"] = dict(sorted(responses.items()))


def _undeclared(operation: Json, kind: _Kind) -> list[Json]:
    """Parts of the path that only a door reads."""
    declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
    return [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"\{(\w+)\}", kind.path)
        if name not in declared
    ]


def _complete_response(response: Json, status: str, kind: _Kind) -> None:
    if status in _EMPTY or kind.method == "HEAD":
        response.pop("content", None)
    elif int(status) >= 400 and "content" not in response:
        response["content"] = _PROBLEM
    wanted = [name for name, comes in _headers(response, status, kind).items() if comes]
    response.setdefault("headers", {}).update({name: _reference(name) for name in wanted})


def _headers(response: Json, status: str, kind: _Kind) -> Mapping[str, bool]:
    is_error, is_file = int(status) >= 400, "range" in kind.parameters
    of_error = _ERRORS[int(status)].headers if is_error and int(status) in _ERRORS else {}
    is_versioned = _schema_of(response).endswith("/Job") or "if-none-match" in kind.parameters
    return {
        "x-request-id": True,
        **dict.fromkeys(of_error, True),
        "ETag": is_versioned and not is_error,
        "Location": status == "303" or (status == "201" and bool(_schema_of(response))),
        "Idempotent-Replayed": "idempotency-key" in kind.parameters and not is_error,
        "Accept-Ranges": is_file and not is_error,
        "Content-Range": (is_file and status == "206") or status == "416",
    }


def _schema_of(response: Json) -> str:
    content = response.get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", ""))


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}
