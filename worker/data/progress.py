"""Progress messages while data is prepared, so that a busy rank is not taken for a stuck one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Far below the deadline of STARTING, which each message renews.
SAY_EVERY_SECONDS = 20.0

_REPEAT_SECONDS = 5.0

#: Called often with how far it is; whoever is told decides how much of it is said.
Tell = Callable[[str], None]


class Progress:
    """Says what it is told, every 20 s from its beginning; what is done before says nothing."""

    def __init__(self, say: Tell, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said_at = clock()

    def tell(self, text: str) -> None:
        """Say the text if the last one is old."""
        now = self._clock()
        if now - self._said_at >= SAY_EVERY_SECONDS:
            self._said_at = now
            self._say(text)


@contextmanager
def telling(text: str, tell: Tell) -> Iterator[None]:
    """Tell the text again and again during the block, for work that cannot say how far it is."""
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
