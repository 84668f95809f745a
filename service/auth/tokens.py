"""Tokens: how they are made, and what is kept of them."""

import hashlib
import secrets
from enum import StrEnum


class Audience(StrEnum):
    """Which routes a token opens."""

    USER = "user"  #: /v1
    RUNNER = "runner"  #: /internal/v1/runners
    ATTEMPT = "attempt"  #: /internal/v1/attempts/{its id}


def mint(audience: Audience) -> str:
    """A new token with 256 random bits; its prefix tells people (and scanners) what it is."""
    return f"rl_{audience}_{secrets.token_urlsafe(32)}"


def digest(token: str) -> str:
    """What the database keeps: SHA-256, enough for a secret that nobody can guess."""
    return hashlib.sha256(token.encode()).hexdigest()
