"""Who may call: a router that depends on one of these refuses everyone without its token."""

from functools import partial
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, Request

from roadless.service.auth import store
from roadless.service.auth.tokens import Audience
from roadless.service.errors import Unauthenticated
from roadless.service.http.dependencies import Db, ReportLimiter

COOKIE = "roadless_token"
_SAFE_METHODS = {"GET", "HEAD"}


def bearer_token(request: Request) -> str:
    """The token of the Authorization header; raises Unauthenticated when there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(
            "expected the header 'Authorization: Bearer TOKEN', saw none; the first tokens are in "
            "files of the service's home folder"
        )
    return token.strip()


def _user_token(request: Request) -> str:
    # The dashboard's cookie may only read: a forged request from another site can change nothing.
    cookie = request.cookies.get(COOKIE)
    if cookie and "authorization" not in request.headers and request.method in _SAFE_METHODS:
        return cookie
    return bearer_token(request)


def require_user(request: Request, db: Db) -> str:
    """The project of the user's token."""
    return _project(db, _user_token(request), Audience.USER)


async def require_runner(request: Request, db: Db, limiter: ReportLimiter) -> str:
    """The project of the runner's token."""
    look_up = partial(_project, db, bearer_token(request), Audience.RUNNER)
    return await anyio.to_thread.run_sync(look_up, limiter=limiter)


def _project(db: Db, token: str, audience: Audience) -> str:
    with db.read() as session:
        project = store.project_of_token(session, token, audience)
    if project is None:
        raise Unauthenticated(
            f"expected a valid {audience} token, saw one that is not; the first one is in "
            f"{audience}.token of the service's home folder"
        )
    return project


Project = Annotated[str, Depends(require_user)]
