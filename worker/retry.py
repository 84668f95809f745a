"""Ever longer pauses between the tries of a call that nobody answers."""

import time
from collections.abc import Callable, Iterator
from typing import Final

from roadless.worker.api import Away


def insist(call: Callable[[], None], *, seconds: float) -> None:
    """Make ``call`` until it is answered: wait while the service is away, ``seconds`` at most.

    Raises the last ``Away`` then; ``Fenced`` and ``Refused`` are answers and come through at once.
    """
    deadline = time.monotonic() + seconds
    for pause in pauses():
        try:
            call()
            return
        except Away:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)


#: The first pause, and the longest, which each next one doubles up to.
FIRST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 2.0


def pauses() -> Iterator[float]:
    """Yield the seconds to wait after each try that failed, without end."""
    seconds = FIRST_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, LONGEST_SECONDS)
