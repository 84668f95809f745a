"""Tokens in the database."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from roadless.service.auth.tokens import Audience, digest
from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.db.tables import TokenRow


def project_of_token(session: Session, token: str, audience: Audience) -> str | None:
    """The project that the token opens, or None when it is not one for this audience."""
    query = select(TokenRow.project).where(
        TokenRow.sha256 == digest(token), TokenRow.audience == audience
    )
    return session.scalar(query)


def has_token(session: Session, name: str) -> bool:
    """Whether a token of this name was ever made."""
    return session.scalar(select(TokenRow.id).where(TokenRow.name == name)) is not None


def insert_token(session: Session, token: str, *, name: str, audience: Audience) -> None:
    """Keep the hash of a new token for the default project."""
    session.add(
        TokenRow(
            id=new_id("tok"),
            name=name,
            audience=audience,
            project="default",
            sha256=digest(token),
            created_at=utc_now(),
        )
    )
