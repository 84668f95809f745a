"""Computations by turns: few at once, in the threads of users' requests, each waiting not long."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import anyio
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from roadless.service.errors import Unavailable

#: So many computations at once, so that they leave threads and cores to everything else.
MAX_AT_ONCE = 2
#: How long a request waits for its turn.
WAIT_SECONDS = 10.0

Result = TypeVar("Result")


class Turns:
    """Whose turn it is."""

    def __init__(self, *, at_once: int = MAX_AT_ONCE, wait_seconds: float = WAIT_SECONDS) -> None:
        self._limiter = anyio.CapacityLimiter(at_once)
        self._wait_seconds = wait_seconds

    async def take(self, work: Callable[[], Result]) -> Result:
        """Run the work in a thread when it is its turn.

        Raises:
            Unavailable: no turn in time.
        """
        with anyio.move_on_after(self._wait_seconds) as wait:
            await self._limiter.acquire()
        if wait.cancelled_caught:
            raise Unavailable("other requests for the theory are being computed; try again")
        try:
            return await run_in_threadpool(work)
        finally:
            self._limiter.release()


async def _turns(request: Request) -> Turns:
    turns: Turns = request.app.state.turns
    return turns


Turn = Annotated[Turns, Depends(_turns)]
