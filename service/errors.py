"""The error tree of the service.

    ServiceError                      500
      Invalid                         422  the request's content is wrong
        IdempotencyKeyReused          422  same key, other body
      Unauthenticated                 401
      Forbidden                       403  the operator does not allow it
      NotFound                        404  also for what belongs to another project
        BlobMissing                   404  the file was deleted
      Conflict                        409  the state does not allow it
        Fenced                        409  a newer attempt has taken over, or this one has ended
        EventsMissing                 409  events of a rank before these were never applied
        KeyInUse                      409  the first request with this key is still running
      PreconditionFailed              412  the job has changed since it was read
      RequestTimeout                  408  the body took too long to arrive
      TooLarge                        413
      UnsupportedEncoding             415  the body is compressed
      RangeNotSatisfiable             416
      PreconditionRequired            428  a change must say which version it means
      Unavailable                     503  database or blobs are away; try again
        Locked                        503  another transaction holds a row for too long
        DiskFull                      503  database, blobs or uploads have no room left

Each class carries its HTTP status and a stable ``code``, which becomes the problem's type, and the
HTTP headers that go with it.
"""

from collections.abc import Mapping
from typing import Any, Self

from roadless.service.contract.resources import ProblemError


class ServiceError(Exception):
    """Root of all errors that the service answers with."""

    status = 500
    code = "internal"
    title = "Internal error"
    headers: Mapping[str, str] = {}

    #: What a program needs to know beyond the standard members of a problem.
    extensions: Mapping[str, Any] = {}

    def __init__(self, detail: str, *, errors: tuple[ProblemError, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors


class Invalid(ServiceError):
    """The request's content is wrong; ``errors`` says where."""

    status, code, title = 422, "invalid", "Invalid request"

    @classmethod
    def at(cls, pointer: str, message: str) -> Self:
        """The error for one place of the request."""
        fault = ProblemError(pointer=pointer, message=message)
        return cls(f"{pointer}: {message}", errors=(fault,))


class IdempotencyKeyReused(Invalid):
    """The key belongs to an earlier request with another body."""

    code, title = "idempotency_key_reused", "Idempotency key reused with a different request"


class Unauthenticated(ServiceError):
    """No token, or one that is not valid here."""

    status, code, title = 401, "unauthenticated", "Authentication required"
    headers = {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    """The operator of the service does not allow this to anybody."""

    status, code, title = 403, "forbidden", "Forbidden"


class NotFound(ServiceError):
    """No such thing in this project."""

    status, code, title = 404, "not_found", "Not found"

    @classmethod
    def by_id(cls, what: str, seen: str, *, of: str = "this project", listed: str) -> Self:
        """The error for an id or name that nothing has; ``listed``: what lists those that exist."""
        return cls(
            f"expected a {what} of {of}, saw {seen[:80]!r}: no {what} is called that; {listed} "
            "lists those that are there"
        )


class BlobMissing(NotFound):
    """The file is not in the blob store: retention or a user has deleted it."""

    code, title = "blob_missing", "File deleted"

    def __init__(self) -> None:
        super().__init__(
            "expected the file that was stored, saw it deleted, by retention or a user; list the "
            "job's checkpoints for those that are kept"
        )


class Conflict(ServiceError):
    """The state of the resource does not allow this."""

    status, code, title = 409, "conflict", "Conflict"


class Fenced(Conflict):
    """The attempt has ended or was replaced; its ranks must leave."""

    code, title = "fenced", "Attempt has ended"


class EventsMissing(Conflict):
    """Events are missing between those applied and those that arrived.

    ``applied_seq``: the last one applied. It may be one that was acknowledged long ago: a database
    that was restored lacks its last seconds.
    """

    code, title = "events_missing", "Events missing"

    def __init__(self, *, applied_seq: int, seen: list[int]) -> None:
        super().__init__(f"expected event {applied_seq + 1} and those after it, saw {seen[:20]}")
        self.extensions = {"applied_seq": applied_seq}


class KeyInUse(Conflict):
    """The first request with this idempotency key has not finished."""

    code, title = "idempotency_key_in_use", "A request with this idempotency key is in progress"


class PreconditionFailed(ServiceError):
    """The resource has changed since the caller read it."""

    status, code, title = 412, "precondition_failed", "Precondition failed"


class PreconditionRequired(ServiceError):
    """A change must name the version that it means."""

    status, code, title = 428, "precondition_required", "If-Match header required"


class TooLarge(ServiceError):
    """More bytes than this endpoint takes."""

    status, code, title = 413, "too_large", "Content too large"


class RequestTimeout(ServiceError):
    """The client has stopped sending its body, or sends it too slowly."""

    status, code, title = 408, "request_timeout", "Request timed out"
    headers = {"Connection": "close"}


class UnsupportedEncoding(ServiceError):
    """The body has a Content-Encoding; the service takes bodies as they are."""

    status, code, title = 415, "unsupported_encoding", "Unsupported content encoding"
    headers = {"Accept-Encoding": "identity"}


class RangeNotSatisfiable(ServiceError):
    """The Range header asks for bytes that the file does not have."""

    status, code, title = 416, "range_not_satisfiable", "Range not satisfiable"

    def __init__(self, header: str, *, size: int) -> None:
        super().__init__(f"expected a range within {size} bytes, saw {header!r}")
        self.headers = {"Content-Range": f"bytes */{size}"}


class Unavailable(ServiceError):
    """Database or blob store does not answer; nothing was lost, try again."""

    status, code, title = 503, "unavailable", "Temporarily unavailable"
    headers = {"Retry-After": "1"}


class Locked(Unavailable):
    """Another transaction holds a row that this one needs, for longer than it should."""


class DiskFull(Unavailable):
    """A disk has no room for what is to be written; nothing was lost, try again once it has."""

    code, title = "disk_full", "Disk full"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"expected room for {what}, saw no disk space left at the service; nothing is lost: "
            "its operator must free some, then try again"
        )
