"""Roadless, a training service: the one package that it installs as.

The folders in it are links to those at the top of the repository, so that what is installed and
what is edited have the same names. Names here are loaded when they are first used: every rank and
every user of an optimizer imports this package, too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roadless.service.client import Client

__all__ = ["Client"]

_HOMES = {"Client": "roadless.service.client"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
