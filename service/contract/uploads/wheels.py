"""Uploaded wheels: packages of users that models of their jobs come from."""

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import Field

from roadless.service.contract.base import Message, Resource

#: Of one wheel: packed, unpacked, and how many files it may have.
MAX_WHEEL_BYTES = 256 * 2**20
MAX_UNPACKED_BYTES = 2**30
MAX_WHEEL_FILES = 10_000
#: Of one project.
MAX_WHEELS = 1000

FILE_NAME_LENGTH = 255
#: One path component: what a wheel's name may consist of, by its specification.
WHEEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl$"

#: Packages that ranks need: another of the same name would replace them.
_OF_RANKS = frozenset(
    {
        *{"httpx", "numpy", "packaging", "pydantic", "pydantic_core", "ray", "roadless"},
        *{"safetensors"},
        *{"llvmlite", "numba", "scipy", "sklearn", "torch", "triton"},
    }
)
#: Modules that the interpreter runs by itself when it starts.
_AT_START = frozenset({"sitecustomize", "usercustomize"})


def reserved(names: Iterable[str]) -> list[str]:
    """Return those of these top-level modules that no wheel may have, sorted."""
    taken = _OF_RANKS | _AT_START | sys.stdlib_module_names
    return sorted(set(names) & taken)


class Wheel(Resource):
    """An uploaded wheel; nothing in it changes."""

    object: Literal["wheel"] = "wheel"
    id: str
    project: str
    file_name: str
    distribution: str = Field(description="its name, normalised")
    version: str
    sha256: str
    size: int
    created_at: datetime


class AssignedWheel(Message):
    """The wheel of an attempt's job, as a node needs to know it."""

    wheel_id: str
    file_name: str = Field(pattern=WHEEL_NAME_PATTERN, max_length=FILE_NAME_LENGTH)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
