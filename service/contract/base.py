"""The two conventions for a wire value: what users write is strict, what machines say is lenient.

A specification with an unknown field is a user's mistake and is refused. A message with one comes
from a newer peer and is read without it, so that service and workers can be upgraded one after the
other.
"""

import re
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

#: Characters of a message in a job's history; longer ones are cut, or refused from a worker.
MAX_MESSAGE_LENGTH = 10_000
#: What no text may hold: NUL, which PostgreSQL cannot store, and half of a surrogate pair, which
#: UTF-8 cannot express. No database gets either, so that all of them hold the same.
UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


class Spec(BaseModel):
    """A value written by a user: frozen, unknown fields forbidden, only finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Message(BaseModel):
    """A value sent between our own processes: frozen, unknown fields ignored.

    Non-finite floats travel as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, since
    JSON cannot express them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class Resource(BaseModel):
    """A value that the API answers with: frozen; non-finite floats become ``null``."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class UnionOfUnions:
    """Annotates a tagged union with a tagged union among its members.

    Its JSON schema names no discriminator, since OpenAPI can map a tag to one class only.
    """

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Return the schema without the mapping from tags to members."""
        schema: dict[str, Any] = handler(core_schema)
        return {key: value for key, value in schema.items() if key != "discriminator"}
