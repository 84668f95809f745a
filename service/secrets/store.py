"""Sealed secrets in the database."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from roadless.service.db.tables import SecretRow
from roadless.service.errors import NotFound
from roadless.service.secrets.cipher import Sealed


def put(session: Session, *, project: str, name: str, sealed: Sealed, now: datetime) -> bool:
    """Keep a value under this name, replacing an older one; return whether the name is new."""
    row = _locked(session, project, name)
    if row is None:
        try:
            with session.begin_nested():
                session.add(_row(project, name, sealed, now))
        except IntegrityError:  # another request was faster: then the later one holds
            row = _locked(session, project, name)
            assert row is not None, "expected the row that was in the way, saw none"
        else:
            return True
    row.sealed, row.key_id, row.updated_at = sealed.token, sealed.key_id, now
    return False


def _row(project: str, name: str, sealed: Sealed, now: datetime) -> SecretRow:
    return SecretRow(
        project=project,
        name=name,
        sealed=sealed.token,
        key_id=sealed.key_id,
        created_at=now,
        updated_at=now,
    )


def _locked(session: Session, project: str, name: str) -> SecretRow | None:
    query = select(SecretRow).where(SecretRow.project == project, SecretRow.name == name)
    return session.scalar(query.with_for_update())


def count(session: Session, project: str) -> int:
    """How many secrets the project has."""
    query = select(func.count()).where(SecretRow.project == project)
    return session.scalar(query) or 0


def page(session: Session, project: str, *, after: str | None, limit: int) -> Sequence[SecretRow]:
    """Up to ``limit`` secrets of the project by name, after the name ``after``."""
    query = select(SecretRow).where(SecretRow.project == project)
    if after is not None:
        query = query.where(SecretRow.name > after)
    return session.scalars(query.order_by(SecretRow.name).limit(limit)).all()


def named(session: Session, project: str, names: Collection[str]) -> dict[str, SecretRow]:
    """Those of the project's secrets that have one of these names."""
    query = select(SecretRow).where(SecretRow.project == project, SecretRow.name.in_(names))
    return {row.name: row for row in session.scalars(query)}


def delete(session: Session, project: str, name: str) -> None:
    """Delete a secret; raises NotFound."""
    row = _locked(session, project, name)
    if row is None:
        raise NotFound.by_id("secret", name, listed="GET /v1/secrets")
    session.delete(row)


def sealed_otherwise(
    session: Session, key_id: str, *, after: tuple[str, str], limit: int
) -> Sequence[SecretRow]:
    """Secrets of all projects that another key has sealed, locked, after (project, name)."""
    query = (
        select(SecretRow)
        .where(SecretRow.key_id != key_id, tuple_(SecretRow.project, SecretRow.name) > after)
        .order_by(SecretRow.project, SecretRow.name)
        .limit(limit)
        .with_for_update()
    )
    return session.scalars(query).all()
