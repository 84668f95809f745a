"""The next batches, made in a thread while the present step runs, unless that costs more."""

import time
from collections import deque
from collections.abc import Callable, Sequence
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
#: Quick batches are made for this many steps at once, up to a multiple of it: most of what that
#: costs is the same for one batch and for many.
BLOCK_STEPS: Final = 16


class Prefetch(Generic[Made]):
    """``prefetch(step)`` is ``make(range(step, step + 1))[0]``, mostly made already.

    ``make``: returns the batches of consecutive steps, each a function of its step alone, since it
    is called ahead of time, in order, by this thread or another; it must not draw from a random
    state that others use. An error made ahead is raised when its step is asked for, and never if it
    is not.
    """

    def __init__(self, make: Callable[[range], Sequence[Made]], *, depth: int = DEPTH) -> None:
        self._make = make
        self._depth = depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next_step = 0
        self._made: deque[Made] = deque()  #: of the steps from ``_next_step`` on
        self._ahead: deque[Future[Sequence[Made]]] = deque()  #: of those behind them, one each
        self._quick_in_a_row = 0

    def __call__(self, step: int) -> Made:
        """Return what was made for this step; steps in a row come from ahead."""
        if step != self._next_step:
            self._drop()
        self._next_step = step + 1
        if not self._made:
            self._made.extend(self._from(step))
        return self._made.popleft()

    def close(self) -> None:
        """Drop what was made ahead; waits for the one that is being made."""
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
        except Exception:  # perhaps of a later step, whose it is to raise
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
