"""Errors as RFC 9457 problem details, with pointers into the request body."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from roadless.service.contract.resources import Problem, ProblemError
from roadless.service.errors import Invalid, ServiceError
from roadless.service.http.known_fields import suggestion

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def install(app: FastAPI) -> None:
    """Answer every error of the app as a problem."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


def _answer(request: Request, error: ServiceError) -> Response:
    problem = Problem(
        type=f"urn:roadless:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=request.url.path,
        request_id=_request_id(request),
        errors=list(error.errors),
    )
    return Response(
        problem.model_dump_json(), error.status, media_type=MEDIA_TYPE, headers=error.headers
    )


def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _answer(request, error)


def _on_http_error(request: Request, error: Exception) -> Response:
    """Errors of the framework itself: no such route, method not allowed."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ServiceError):  # FastAPI wraps what ends the reading of a body
        return _answer(request, error.__cause__)
    if isinstance(error.__cause__, ValueError | RecursionError):  # and what its parser raises
        return _answer(request, Invalid(f"expected JSON in UTF-8, saw: {error.__cause__}"))
    problem = ServiceError(_explain_http_error(request, error))
    problem.status, problem.code = error.status_code, f"http_{error.status_code}"
    problem.title, problem.headers = str(error.detail), error.headers or {}
    return _answer(request, problem)


def _explain_http_error(request: Request, error: HTTPException) -> str:
    seen = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        return f"expected a route of the service, saw {seen}; GET /openapi.json lists them"
    if error.status_code == 405:
        return f"expected {Headers(error.headers).get('allow')}, saw {seen}"
    return str(error.detail)


def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """The client left in the middle of its request: nobody reads this, and it is not a bug."""
    return Response(status_code=400)


def _on_bug(request: Request, error: Exception) -> Response:
    log.exception(
        "unexpected error on %s %r, request %s",  # a path may hold control characters
        *(request.method, request.url.path, _request_id(request)),
        exc_info=error,
    )
    return _answer(
        request, ServiceError("unexpected error; see the service log for this request ID")
    )


def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    body_type = _body_type(request)
    faults = tuple(_fault(one, error.body, body_type) for one in error.errors())
    if isinstance(error.body, bytes):  # FastAPI (0.163) parses a body only if it is said to be JSON
        kept = tuple(fault for fault in faults if ":" in fault.pointer)
        faults = (*kept, ProblemError(pointer="", message=_explain_content_type(request)))
    detail = "; ".join(f"{fault.pointer or 'body'}: {fault.message}" for fault in faults[:3])
    return _answer(request, Invalid(detail, errors=faults))


def _body_type(request: Request) -> Any:
    route = request.scope.get("route")
    field = route.body_field if isinstance(route, APIRoute) else None
    return None if field is None else field.field_info.annotation


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


def _explain_content_type(request: Request) -> str:
    seen = request.headers.get("content-type")
    return (
        "expected the header Content-Type: application/json with this body, saw "
        + ("none" if seen is None else _short(seen))
        + "; curl needs -H 'Content-Type: application/json' beside -d"
    )


def _explain(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"expected JSON, saw {error['ctx']['error']!r} at character {error['loc'][-1]}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if "saw" in message or error["type"] == "missing":
        return message
    return f"{message}; saw {_short(error.get('input'))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
        parts.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in parts)


def _has(body: Any, part: str | int) -> bool:
    if isinstance(body, dict):
        return part in body
    return isinstance(body, list) and isinstance(part, int) and 0 <= part < len(body)
