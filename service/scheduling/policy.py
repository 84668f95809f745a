"""Which queued jobs fit the free capacity. Pure.

Strict order (priority, then age); a job that does not fit is passed over, so that small jobs fill
what a large one cannot use. A gang fits when each of its workers finds a seat on some node. An
elastic job gets the largest of its sizes that fits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Capacity:
    """What is free on one node."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Ask:
    """What one job needs: ``workers`` seats of equal size, or one of the numbers in ``fewer``."""

    job_id: str
    workers: int
    cpus: int
    gpus: int
    fewer: tuple[int, ...] = ()  #: largest first

    def sizes(self) -> list["Ask"]:
        """The sizes that would do, largest first, each as a request for that size only."""
        return [replace(self, workers=n, fewer=()) for n in (self.workers, *self.fewer)]


def choose(queue: Iterable[Ask], free: Sequence[Capacity]) -> tuple[list[Ask], Sequence[Capacity]]:
    """The jobs to start now, in order, each at the size that fits; and what is left free."""
    chosen = []
    for ask in queue:
        for one in ask.sizes():
            left = seat(one, free)
            if left is not None:
                chosen.append(one)
                free = left
                break
    return chosen, free


def grow(ask: Ask, workers: int, free: Sequence[Capacity]) -> tuple[int, Sequence[Capacity]]:
    """The largest size of a job that runs with ``workers``, and the capacity left beside that.

    ``free``: without the seats that the job has, which it keeps where they are.
    """
    for one in ask.sizes():
        more = one.workers - workers
        left = seat(replace(one, workers=more), free) if more > 0 else None
        if left is not None:
            return one.workers, left
    return workers, free


def seat(ask: Ask, free: Sequence[Capacity]) -> Sequence[Capacity] | None:
    """The capacity left after seating the whole gang, or None when it does not fit."""
    left, missing = [], ask.workers
    for node in free:
        taken = min(missing, _seats(node, ask))
        left.append(Capacity(node.cpus - taken * ask.cpus, node.gpus - taken * ask.gpus))
        missing -= taken
    return None if missing else left


def _seats(node: Capacity, ask: Ask) -> int:
    by_cpus = int(node.cpus // ask.cpus)
    return min(by_cpus, int(node.gpus // ask.gpus)) if ask.gpus else by_cpus
