"""A request with an Idempotency-Key has its effect once, and gets the same answer each time."""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from roadless.service.clock import utc_now
from roadless.service.db.session import Database
from roadless.service.errors import IdempotencyKeyReused, KeyInUse, Locked
from roadless.service.idempotency import store

IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)
]
REPLAYED = {"Idempotent-Replayed": "true"}

Answer = dict[str, Any]


def once(
    db: Database,
    act: Callable[[Session], Answer],
    *,
    project: str,
    key: str | None,
    request: str,
) -> tuple[Answer, bool]:
    """Act in a separate transaction; return the answer, and whether it is a replay.

    The key and the effect are one transaction: a second request with the key either sees the first
    one's answer or waits for it in the database.

    Args:
        db: the database.
        act: what the request does; returns its answer as JSON.
        project: whose request it is; each has its own keys.
        key: the header Idempotency-Key; None: act each time.
        request: what must be equal for two requests to be the same.

    Raises:
        KeyInUse: waiting for the first request took too long.
        IdempotencyKeyReused: the key belongs to another request.
    """
    if key is None:
        with db.write() as session:
            return act(session), False
    sha256 = hashlib.sha256(request.encode()).hexdigest()
    if (answer := _replay(db, project, key, sha256)) is not None:
        return answer, True
    is_taken = False
    try:
        with db.write() as session:
            # First of all: whoever waits then waits for the key, and not for a job.
            row = store.take_key(session, project, key, body_sha256=sha256, now=utc_now())
            is_taken = True
            row.response = act(session)
            return row.response, False
    except Locked as error:
        if is_taken:
            raise
        raise KeyInUse(
            f"expected the first request with key {key!r} to have ended, saw it still running; try "
            "again for its answer"
        ) from error
    except IntegrityError:
        # Another request with the same key committed between our query and our insert.
        answer = _replay(db, project, key, sha256)
        if answer is None:
            raise
        return answer, True


def _replay(db: Database, project: str, key: str, sha256: str) -> Answer | None:
    with db.read() as session:
        row = store.answer(session, project, key)
        if row is None:
            return None
        if row.body_sha256 != sha256:
            raise IdempotencyKeyReused(
                f"expected the request that key {key!r} was used with before, saw another; use "
                "a new key for a new request"
            )
        return row.response
