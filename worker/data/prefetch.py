"""The next batches, made in a thread while the current step runs, unless that costs more."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

Made = TypeVar("Made")

#: The most batches that wait: one is enough where loading is faster than a step, the second absorbs
#: an occasional slow read.
DEPTH: Final = 2
#: Two threads cost each other about a tenth of a millisecond per batch, so batches made faster than
#: this are made by the thread that needs them.
QUICK_SECONDS: Final = 0.0002
#: This many batches in a row must be quick; a slow one brings the thread back.
QUICK_IN_A_ROW: Final = 16
#: Quick batches are made for this many steps in one call, up to a multiple of it: most of the cost
#: is the same for one batch and for many.
BLOCK_STEPS: Final = 16


class Prefetch(Generic[Made]):
    """``prefetch(step)`` is ``make(range(step, step + 1))[0]``, usually made in advance.

    ``make``: returns the batches of consecutive steps, each a function of its step alone, since it
    is called ahead of time, in order, by this thread or another; it must not draw from a random
    state that others use. An error made ahead is raised when its step is requested, and otherwise
    never.
    """

    def __init__(self, make: Callable[[range], Sequence[Made]], *, depth: int = DEPTH) -> None:
        self._make = make
        self._depth = depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next_step = 0
        self._made: deque[Made] = deque()  #: of the steps from ``_next_step`` on
        self._ahead: deque[Future[Sequence[Made]]] = deque()  #: of the steps after them, one each
        self._quick_in_a_row = 0

    def __call__(self, step: int) -> Made:
        """Return what was made for this step; consecutive steps are made ahead."""
        if step != self._next_step:
            self._drop()
        self._next_step = step + 1
        if not self._made:
            self._made.extend(self._from(step))
        return self._made.popleft()

    def close(self) -> None:
        """Drop what was made ahead; waits for the batch in progress."""
        self._drop()
        self._pool.shutdown()

    def _from(self, step: int) -> Sequence[Made]:
        """The batch of this step, and perhaps those of the next ones."""
        is_quick = self._quick_in_a_row >= QUICK_IN_A_ROW
        if is_quick and not self._ahead:
            return self._block(step)
        while not is_quick and len(self._ahead) <= self._depth:
            self._ahead.append(self._pool.submit(self._timed, _only(step + len(self._ahead))))
        return self._ahead.popleft().result()

    def _block(self, step: int) -> Sequence[Made]:
        try:
            return self._timed(range(step, step - step % BLOCK_STEPS + BLOCK_STEPS))
        except Exception:  # perhaps of a later step, which is to raise it
            return self._timed(_only(step))

    def _timed(self, steps: range) -> Sequence[Made]:
        started = time.perf_counter()
        made = self._make(steps)
        is_quick = time.perf_counter() - started <= QUICK_SECONDS * len(steps)
        self._quick_in_a_row = self._quick_in_a_row + 1 if is_quick else 0
        return made

    def _drop(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._made.clear()


def _only(step: int) -> range:
    return range(step, step + 1)
