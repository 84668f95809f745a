"""A limit on computations: few at once, in the threads of users' requests; none waits for long."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import anyio
from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from roadless.service.errors import Unavailable
from roadless.service.http.dependencies import state_of

#: Computations at a time, so that threads and cores are left for everything else.
MAX_AT_ONCE = 2
#: How long a request waits for a free place.
WAIT_SECONDS = 10.0

Result = TypeVar("Result")


class ConcurrencyLimit:
    """Runs a few computations at a time and lets the others wait."""

    def __init__(self, *, at_once: int = MAX_AT_ONCE, wait_seconds: float = WAIT_SECONDS) -> None:
        self._limiter = anyio.CapacityLimiter(at_once)
        self._wait_seconds = wait_seconds

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run the work in a thread as soon as one is free.

        Raises:
            Unavailable: none was free in time.
        """
        with anyio.move_on_after(self._wait_seconds) as wait:
            await self._limiter.acquire()
        if wait.cancelled_caught:
            raise Unavailable("the service is busy with other theory requests; try again")
        try:
            return await run_in_threadpool(work)
        finally:
            self._limiter.release()


async def _limit(request: Request) -> ConcurrencyLimit:
    return state_of(request).part(ConcurrencyLimit)


TheoryLimit = Annotated[ConcurrencyLimit, Depends(_limit)]
