"""Calls to a service that may be away, retried after ever longer pauses."""

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from roadless.worker.api import Away

Answer = TypeVar("Answer")

#: The first pause; each doubles the one before, up to the longest.
FIRST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 2.0


def call_with_retry(call: Callable[[], Answer], *, seconds: float) -> Answer:
    """Make ``call`` until it is answered, and return the answer.

    Waits while the service is away, for at most ``seconds``, and then raises the last ``Away``.
    ``Fenced`` and ``Refused`` are answers and are raised immediately.
    """
    deadline = time.monotonic() + seconds
    for pause in pauses():
        try:
            return call()
        except Away:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
    raise AssertionError("expected pauses without end")


def pauses() -> Iterator[float]:
    """Yield the seconds to wait after each failed call, endlessly."""
    seconds = FIRST_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, LONGEST_SECONDS)
