"""Doors: dependencies that say who calls. They are asked before a byte of a body is read.

Frameworks read and parse a body first, so a stranger could make the service work and wait.
"""

import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant

#: Says who calls (a project, a token), or raises Unauthenticated.
Door = Callable[[Request], Awaitable[str]]

#: Keys of a scope: what its doors answered; and what the server wants to hear of a known caller.
_ANSWERS = "roadless.doors"
ON_KNOWN = "roadless.on_known"

_DOORS: set[Callable[..., Any]] = set()


def door(ask: Door) -> Door:
    """Make a door of a function that looks a token up: it is asked once for each request."""

    @functools.wraps(ask)
    async def asked(request: Request) -> str:
        answers: dict[Door, str] = request.scope.setdefault(_ANSWERS, {})
        if asked not in answers:
            answers[asked] = await ask(request)
            request.scope.get(ON_KNOWN, _nobody_asked)()
        return answers[asked]

    _DOORS.add(asked)
    return asked


def _nobody_asked() -> None:
    """Tests and other servers have no bound on unknown callers."""


def doors_of(dependant: Dependant) -> Iterator[Door]:
    """The doors of a route."""
    for inner in dependant.dependencies:
        if inner.call is not None and inner.call in _DOORS:
            yield inner.call
        yield from doors_of(inner)
