"""Who may call: a router that depends on one of these refuses everyone without its token."""

from functools import partial
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, Request

from roadless.service.auth import store
from roadless.service.auth.tokens import Audience
from roadless.service.db.session import Database
from roadless.service.errors import Unauthenticated
from roadless.service.http.dependencies import state_of
from roadless.service.http.doors import door

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


@door
async def require_user(request: Request) -> str:
    """The project of the user's token."""
    look_up = partial(_project, state_of(request).db, _user_token(request), Audience.USER)
    return await anyio.to_thread.run_sync(look_up)


@door
async def require_runner(request: Request) -> str:
    """The project of the runner's token."""
    state = state_of(request)
    look_up = partial(_project, state.db, bearer_token(request), Audience.RUNNER)
    return await anyio.to_thread.run_sync(look_up, limiter=state.report_limiter)


def _project(db: Database, token: str, audience: Audience) -> str:
    with db.read() as session:
        project = store.project_of_token(session, token, audience)
    if project is None:
        raise Unauthenticated(
            f"expected a valid {audience} token, saw one that is not; the first one is in "
            f"{audience}.token of the service's home folder"
        )
    return project


Project = Annotated[str, Depends(require_user)]
