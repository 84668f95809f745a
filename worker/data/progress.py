"""Progress messages while data is prepared, so that a busy rank is not taken for a stuck one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Far below the deadline of STARTING, which each message renews.
SAY_EVERY_SECONDS = 20.0

_REPEAT_SECONDS = 5.0

#: Called often with the progress so far; the receiver decides how much of it to report.
Tell = Callable[[str], None]


class Progress:
    """Passes on one message every 20 s from its creation; work that is done sooner reports none."""

    def __init__(self, say: Tell, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said_at = clock()

    def tell(self, text: str) -> None:
        """Pass on the text if the last one is old enough."""
        now = self._clock()
        if now - self._said_at >= SAY_EVERY_SECONDS:
            self._said_at = now
            self._say(text)


@contextmanager
def telling(text: str, tell: Tell) -> Iterator[None]:
    """Repeat the text during the block, for work that cannot report its progress."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(_REPEAT_SECONDS):
            tell(text)

    thread = threading.Thread(target=repeat, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
