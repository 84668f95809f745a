"""Errors as RFC 9457 problem details, with pointers into the request body."""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from roadless.service.contract.resources import Problem, ProblemError
from roadless.service.errors import Invalid, ServiceError
from roadless.service.http.faults import MAX_FAULTS, of_validation, refusal, short

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: Characters of a problem, which may repeat what was sent.
MAX_DETAIL_LENGTH = 4000
MAX_MESSAGE_LENGTH = 1000
MAX_POINTER_LENGTH = 1000


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
        detail=_cut(error.detail, MAX_DETAIL_LENGTH),
        instance=request.url.path,
        request_id=_request_id(request),
        errors=[_short_fault(fault) for fault in error.errors[:MAX_FAULTS]],
    )
    content = problem.model_dump_json()
    if error.extensions:
        content = json.dumps({**json.loads(content), **error.extensions})
    return Response(content, error.status, media_type=MEDIA_TYPE, headers=error.headers)


def _short_fault(fault: ProblemError) -> ProblemError:
    return ProblemError(
        pointer=_cut(fault.pointer, MAX_POINTER_LENGTH),
        message=_cut(fault.message, MAX_MESSAGE_LENGTH),
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


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
    """Faults of parameters, and of bodies that are missing or not said to be JSON."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    faults = of_validation(found[:MAX_FAULTS], error.body, _body_type(request))
    if isinstance(error.body, bytes):  # FastAPI (0.163) parses a body only if it is said to be JSON
        kept = [fault for fault in faults if ":" in fault.pointer]
        faults = [*kept, ProblemError(pointer="", message=_explain_content_type(request))]
    return _answer(request, refusal(faults, num_faults=max(len(found), len(faults))))


def _body_type(request: Request) -> Any:
    route = request.scope.get("route")
    field = route.body_field if isinstance(route, APIRoute) else None
    return None if field is None else field.field_info.annotation


def _explain_content_type(request: Request) -> str:
    seen = request.headers.get("content-type")
    return (
        "expected the header Content-Type: application/json with this body, saw "
        + ("none" if seen is None else short(seen))
        + "; curl needs -H 'Content-Type: application/json' beside -d"
    )
