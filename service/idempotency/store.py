"""Idempotency keys in the database."""

from datetime import datetime

from sqlalchemy.orm import Session

from roadless.service.db.deletion import ROWS_TOGETHER, delete_some
from roadless.service.db.tables import IdempotencyRow


def take_key(
    session: Session, project: str, key: str, *, body_sha256: str, now: datetime
) -> IdempotencyRow:
    """Write a key, whose answer is not known yet; raises IntegrityError when it is in use.

    Waits for another transaction that is writing the same key.
    """
    row = IdempotencyRow(
        project=project, key=key, body_sha256=body_sha256, response={}, created_at=now
    )
    session.add(row)
    session.flush()
    return row


def answer(session: Session, project: str, key: str) -> IdempotencyRow | None:
    """The answer to an earlier request with this key."""
    return session.get(IdempotencyRow, (project, key))


def forget_some_keys(session: Session, *, before: datetime) -> int:
    """Delete up to ROWS_TOGETHER keys of requests made before then; return how many."""
    is_old = IdempotencyRow.created_at < before
    return delete_some(session, IdempotencyRow, is_old, limit=ROWS_TOGETHER)
