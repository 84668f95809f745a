"""One piece of work at a time beside training, in a thread that yields to it."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

#: Such a thread gets about a tenth of a core that training wants whole: enough to come to an end.
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
        """Start it once what was begun before is done, the failure of which is raised here."""
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
