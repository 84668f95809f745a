"""Access for an attempt's ranks: their token opens their own attempt and nothing else."""

from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from roadless.service.attempts import store
from roadless.service.attempts.leases import LeaseKeeper
from roadless.service.auth.dependencies import bearer_token
from roadless.service.db.session import Database
from roadless.service.db.tables import AttemptRow
from roadless.service.errors import Fenced, Unauthenticated
from roadless.service.http.dependencies import state_of
from roadless.service.http.doors import door


@door
async def require_attempt(request: Request) -> str:
    """The token of the attempt in the path, checked to be one, whether or not it has ended."""
    state, token = state_of(request), bearer_token(request)
    attempt = await anyio.to_thread.run_sync(
        _by_token, state.db, token, limiter=state.report_limiter
    )
    if attempt is None or attempt.id != request.path_params["attempt_id"]:
        raise Unauthenticated("expected the token of this attempt, saw another")
    return token


def _by_token(db: Database, token: str) -> AttemptRow | None:
    with db.read() as session:
        return store.by_token(session, token)


def open_attempt(session: Session, token: str) -> AttemptRow:
    """The attempt of this token while it may write; raises Fenced when it is over."""
    attempt = store.by_token(session, token)
    if attempt is None or attempt.ended_at is not None:
        raise Fenced(
            "expected an attempt that lasts, saw one that has ended or was replaced by a newer "
            "one; its ranks must leave"
        )
    return attempt


async def _leases(request: Request) -> LeaseKeeper:
    return state_of(request).part(LeaseKeeper)


AttemptToken = Annotated[str, Depends(require_attempt)]
Leases = Annotated[LeaseKeeper, Depends(_leases)]
