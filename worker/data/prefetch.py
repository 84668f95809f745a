"""The next batches, made in a thread while the present step runs."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")

#: Batches that wait at most: one is enough where loading is faster than a step, the second takes up
#: a slow read now and then.
DEPTH = 2


class Prefetch(Generic[Made]):
    """``prefetch(step)`` is ``make(step)``, mostly made already: the same value or the same error.

    ``make``: a function of the step alone, since it is called ahead of time, in order, and by one
    thread; it must not draw from a random state that others use. An error made ahead is raised when
    its step is asked for, and never if it is not.
    """

    def __init__(self, make: Callable[[int], Made], *, depth: int = DEPTH) -> None:
        self._make = make
        self._depth = depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next_step = 0
        self._ahead: deque[Future[Made]] = deque()  #: of the steps from ``_next_step`` on

    def __call__(self, step: int) -> Made:
        """Return what was made for this step; steps in a row come from ahead."""
        if step != self._next_step:
            self._forget()
            self._next_step = step
        while len(self._ahead) <= self._depth:
            number = self._next_step + len(self._ahead)
            self._ahead.append(self._pool.submit(self._make, number))
        self._next_step += 1
        return self._ahead.popleft().result()

    def close(self) -> None:
        """Drop what was made ahead; waits for the one that is being made."""
        self._forget()
        self._pool.shutdown()

    def _forget(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
