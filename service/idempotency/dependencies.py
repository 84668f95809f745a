"""The header Idempotency-Key as a route asks for it, and the one that marks a replayed answer."""

from typing import Annotated

from fastapi import Header

IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)
]
REPLAYED = {"Idempotent-Replayed": "true"}
