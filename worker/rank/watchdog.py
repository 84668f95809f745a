"""The step watchdog: a rank that makes no step for too long reports where it hangs, and exits.

It watches from its own thread, which runs while the training thread waits in a collective. If even
that thread cannot run, because native code holds the interpreter's lock, the C timer of
``faulthandler`` writes the stacks and ends the process.
"""

import faulthandler
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

#: How much of the stacks' end, where the training thread is, goes into the message.
TOLD_CHARACTERS = 3000
#: How often per ``hang_seconds``, at least, the watching thread shows that it still runs.
_LOOKS = 4


class Watchdog:
    """Calls ``on_hang`` once, with a message, when no step was made for ``hang_seconds``.

    Armed from the first ``beat``, since the first step has its own deadline, until ``close``.
    """

    def __init__(self, hang_seconds: float, *, on_hang: Callable[[str], None]) -> None:
        self._hang_seconds = hang_seconds
        self._on_hang = on_hang
        self._last_beat = 0.0
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Record progress: a step, a batch of an evaluation, a checkpoint written."""
        self._last_beat = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop watching; a message that is being reported is completed."""
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        try:
            while (left := self._last_beat + self._hang_seconds - time.monotonic()) > 0:
                # Rearmed at each look, so it fires only if there is none.
                faulthandler.dump_traceback_later(self._hang_seconds, exit=True, file=sys.stderr)
                if self._is_closed.wait(min(left, self._hang_seconds / _LOOKS)):
                    return
        finally:
            faulthandler.cancel_dump_traceback_later()
        stacks = stacks_of_all_threads()
        log.error("no step for %g s; the stacks of all threads:\n%s", self._hang_seconds, stacks)
        self._on_hang(
            f"expected a step within {self._hang_seconds:g} s, saw none; the end of the stacks:\n"
            f"{stacks[-TOLD_CHARACTERS:]}"
        )


def stacks_of_all_threads() -> str:
    """Return the Python stack of every thread, most recent call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
