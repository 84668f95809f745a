"""Routes whose callers are known before their bodies are read, and parsed off the event loop."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio.to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from roadless.service.http.bodies import BodyParser
from roadless.service.http.dependencies import state_of
from roadless.service.http.doors import doors_of
from roadless.service.http.middleware import is_users


class GuardedRoute(APIRoute):
    """The class of every route of the service."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Ask the doors, then answer as FastAPI does, which sees a validated body."""
        answer = super().get_route_handler()
        doors, parser = tuple(doors_of(self.dependant)), _parser_of(self)

        async def guarded(request: Request) -> Response:
            for door in doors:
                await door(request)
            return await answer(_JsonRequest(request, parser) if parser else request)

        return guarded


class _JsonRequest(Request):
    """A request whose ``json()`` is the validated value, which FastAPI then takes as it is."""

    def __init__(self, request: Request, parser: BodyParser) -> None:
        super().__init__(request.scope, request.receive)
        self._parser = parser

    async def json(self) -> Any:
        """The value of the body; raises Invalid."""
        state = state_of(self)
        limiter = state.parsing_limiter if self._parser.is_strict else state.report_limiter
        content = await self.body()
        return await anyio.to_thread.run_sync(self._parser.parse, content, limiter=limiter)


def _parser_of(route: APIRoute) -> BodyParser | None:
    if route.body_field is None:
        return None
    kind: Any = route.body_field.field_info.annotation
    return BodyParser(kind, TypeAdapter(kind), is_strict=is_users(route.path))
