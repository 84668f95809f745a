"""Work beside training, one piece at a time, in a thread that yields to training."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

#: Such a thread gets about a tenth of a core that training keeps busy: enough to finish.
_NICENESS = 10


class Background:
    """Runs what it is given in order; ``wait`` returns once it is done."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=yield_to_others)
        self._pending: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is not done yet."""
        return self._pending is not None and not self._pending.done()

    def begin(self, work: Callable[[], None]) -> None:
        """Start ``work`` once the previous work is done; raise what that raised."""
        self.wait()
        self._pending = self._pool.submit(work)

    def wait(self) -> None:
        """Return once nothing is left to do; raise what the work raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def yield_to_others() -> None:
    """Let the kernel prefer every other thread of this process to the calling one."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
