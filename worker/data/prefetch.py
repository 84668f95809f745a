"""The next batches, made in a thread while the present step runs, unless that costs more."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

Made = TypeVar("Made")

#: Batches that wait at most: one is enough where loading is faster than a step, the second takes up
#: a slow read now and then.
DEPTH: Final = 2
#: Two threads cost each other about a tenth of a millisecond a batch, so what is made faster than
#: this is made by the one that needs it.
QUICK_SECONDS: Final = 0.0002
#: As many batches in a row must have been quick; one that is not brings the thread back.
QUICK_IN_A_ROW: Final = 16


class Prefetch(Generic[Made]):
    """``prefetch(step)`` is ``make(step)``, mostly made already: the same value or the same error.

    ``make``: a function of the step alone, since it is called ahead of time, in order, by this
    thread or another; it must not draw from a random state that others use. An error made ahead is
    raised when its step is asked for, and never if it is not.
    """

    def __init__(self, make: Callable[[int], Made], *, depth: int = DEPTH) -> None:
        self._make = make
        self._depth = depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next_step = 0
        self._ahead: deque[Future[Made]] = deque()  #: of the steps from ``_next_step`` on
        self._quick_in_a_row = 0

    def __call__(self, step: int) -> Made:
        """Return what was made for this step; steps in a row come from ahead."""
        if step != self._next_step:
            self._forget()
        self._next_step = step + 1
        is_quick = self._quick_in_a_row >= QUICK_IN_A_ROW
        if is_quick and not self._ahead:
            return self._timed(step)
        while not is_quick and len(self._ahead) <= self._depth:
            self._ahead.append(self._pool.submit(self._timed, step + len(self._ahead)))
        return self._ahead.popleft().result()

    def close(self) -> None:
        """Drop what was made ahead; waits for the one that is being made."""
        self._forget()
        self._pool.shutdown()

    def _timed(self, step: int) -> Made:
        started = time.perf_counter()
        made = self._make(step)
        is_quick = time.perf_counter() - started <= QUICK_SECONDS
        self._quick_in_a_row = self._quick_in_a_row + 1 if is_quick else 0
        return made

    def _forget(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
