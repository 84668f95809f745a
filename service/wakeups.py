"""A bell between requests: whoever changes what a runner should do rings, long polls wake.

It only saves waiting: state lives in the database, and a poll that misses the bell (another replica
rang it) looks again by itself within a second.
"""

import asyncio


class Wakeups:
    """Rung from any thread; waited for on the event loop that it is bound to."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell = asyncio.Event()
        #: Set when the service is about to stop: nobody may wait any more.
        self.is_closed = False

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the loop that the waiters run on. Until then ringing does nothing."""
        self._loop = loop

    def ring(self) -> None:
        """Wake everyone who waits now."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring_on_loop)

    def close(self) -> None:
        """Wake everyone for the last time."""
        self.is_closed = True
        self.ring()

    def _ring_on_loop(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

    def next_ring(self) -> asyncio.Event:
        """The next ring. Take it before looking at the database, so that none is missed."""
        return self._bell


async def heard_within(bell: asyncio.Event, seconds: float) -> bool:
    """Whether the bell rang within ``seconds``."""
    try:
        await asyncio.wait_for(bell.wait(), seconds)
    except TimeoutError:
        return False
    return True
