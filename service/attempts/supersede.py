"""Which points still count when a later attempt resumed from an earlier step.

An attempt that resumes from step s repeats the steps after s; what older attempts reported about
those steps is kept but no longer served.
"""

from collections.abc import Iterable


def cutoffs(attempts: Iterable[tuple[int, int]]) -> dict[int, int | None]:
    """Up to which step each attempt's points are live; None: all of them.

    ``attempts`` holds (fence, resumed step) pairs in any order; fences are distinct.
    """
    live: dict[int, int | None] = {}
    earliest: int | None = None
    for fence, resumed_step in sorted(attempts, reverse=True):
        live[fence] = earliest
        earliest = resumed_step if earliest is None else min(earliest, resumed_step)
    return live
