"""Secrets of a project: how they are named, what a user sends, and what the API shows.

A secret becomes an environment variable of ranks, so its name must be that of a credential: any
other variable could send a rank elsewhere, or make it run code that nobody allowed.
"""

import re
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator

from roadless.service.contract.base import Resource, Spec

#: Secrets of a project, and names in a job.
MAX_SECRETS = 100
MAX_SECRETS_OF_JOB = 32
#: A shorter value looks like an ordinary word, which would be redacted wherever it occurs.
MIN_VALUE_LENGTH = 4
MAX_VALUE_BYTES = 32 * 2**10

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_CREDENTIAL = re.compile(r"SECRET_\w+|(\w+_)?(TOKEN|KEY|KEY_ID|SECRET|PASSWORD)")
_FORM = (
    "expected the name of a credential: at most 64 capital letters, digits and _, that ends in "
    "_TOKEN, _KEY, _KEY_ID, _SECRET or _PASSWORD, or begins with SECRET_"
)
#: Libraries also take instructions from other variables with these prefixes.
_KNOWN = {
    "AWS_": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
    "GOOGLE_": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    "HF_": ("HF_TOKEN",),
    "HUGGING": ("HF_TOKEN",),
}
#: Prefixes of variables that configure the service, Ray and a rank's own libraries.
_RESERVED = ("ROADLESS_", "RAY_", "LD_", "PYTHON", "CUDA_", "NCCL_", "GLOO_", "OMP_", "TORCH")
_REGION = re.compile(r"[a-z0-9-]{4,32}")
#: A job that has one of these has the others too, so that no credential of a node is mixed in.
_BELONG_TOGETHER = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
_AWS = frozenset(_KNOWN["AWS_"])


def _credential(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_FORM}; saw something else")  # which may be the value itself
    if name.startswith(_RESERVED):
        reserved = ", ".join(_RESERVED)
        raise ValueError(f"expected a name that does not begin with {reserved}; saw {name}")
    for prefix, known in _KNOWN.items():
        if name.startswith(prefix) and name not in known:
            raise ValueError(f"expected {' or '.join(known)} for {prefix}..., saw {name}")
        if name in known:
            return name
    if not _CREDENTIAL.fullmatch(name):
        raise ValueError(f"{_FORM}; saw {name}")
    return name


def check_together(names: Collection[str]) -> None:
    """Raise ValueError unless the credentials that a job names are complete."""
    if _AWS.isdisjoint(names):
        return
    if missing := sorted(_BELONG_TOGETHER - set(names)):
        raise ValueError(
            f"expected {' and '.join(missing)} along with the other AWS_... names, saw none"
        )


def check_value(name: str, value: str) -> None:
    """Raise ValueError, without the value in it, unless ``name`` may have that value."""
    if name == "AWS_REGION" and not _REGION.fullmatch(value):
        raise ValueError("expected the name of a region for AWS_REGION, saw something else")


def _names_alone(value: Any) -> Any:
    """Keep values that were put here by mistake out of error messages."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of names, saw something else")
    return value


#: The name of an environment variable that holds a credential.
SecretName = Annotated[str, AfterValidator(_credential)]
#: The secrets that a job names.
SecretNames = Annotated[
    tuple[SecretName, ...], Field(max_length=MAX_SECRETS_OF_JOB), BeforeValidator(_names_alone)
]


class NewSecret(Spec):
    """The value of a secret, as a user sends it. It is never returned."""

    value: SecretStr = Field(
        description=f"at least {MIN_VALUE_LENGTH} characters other than whitespace, at most "
        f"{MAX_VALUE_BYTES} bytes, no null character"
    )

    @field_validator("value")
    @classmethod
    def _can_be_handed_on_and_hidden(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        size = len(text.encode())
        if size > MAX_VALUE_BYTES:
            raise ValueError(f"expected at most {MAX_VALUE_BYTES} bytes, saw {size}")
        if len("".join(text.split())) < MIN_VALUE_LENGTH:
            raise ValueError(f"expected at least {MIN_VALUE_LENGTH} characters, saw fewer")
        if "\0" in text:
            raise ValueError("expected no null character, saw one")
        return value


class Secret(Resource):
    """A secret without its value. ``is_readable``: false if the service has lost its key."""

    object: Literal["secret"] = "secret"
    name: str
    is_readable: bool
    created_at: datetime
    updated_at: datetime
