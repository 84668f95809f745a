"""For how long the service has refused all that a rank says. Pure; the clock is passed in."""

from collections.abc import Callable


class Refusals:
    """Counts the time from refusal to refusal: not what passes while the service is away.

    A service that is away will hear all of it later. One that refuses everything never will, and
    what a rank computes meanwhile is lost.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._last: float | None = None

    def end(self) -> None:
        """Something was accepted."""
        self._seconds, self._last = 0.0, None

    def pause(self) -> None:
        """The service is away."""
        self._last = None

    def add(self) -> float:
        """Something was refused; return for how many seconds everything has been."""
        now = self._clock()
        if self._last is not None:
            self._seconds += now - self._last
        self._last = now
        return self._seconds
