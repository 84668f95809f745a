"""Which queued jobs fit the free capacity. Pure.

Strict order (priority, then age); a job that does not fit is passed over, so that small jobs fill
what a large one cannot use. A gang fits when each of its workers finds room on some node. An
elastic job gets the largest of its sizes that fits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Room:
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
        """What would do, largest first; each asks for one size only."""
        return [replace(self, workers=n, fewer=()) for n in (self.workers, *self.fewer)]


def choose(queue: Iterable[Ask], rooms: Sequence[Room]) -> tuple[list[Ask], Sequence[Room]]:
    """The jobs to start now, in order and each of the size that fits; and the room that is left."""
    chosen = []
    for ask in queue:
        for one in ask.sizes():
            left = seat(one, rooms)
            if left is not None:
                chosen.append(one)
                rooms = left
                break
    return chosen, rooms


def grow(ask: Ask, workers: int, rooms: Sequence[Room]) -> tuple[int, Sequence[Room]]:
    """The largest size of a job that runs with ``workers``, and the room left beside that.

    ``rooms``: without the seats that the job has, which it keeps where they are.
    """
    for one in ask.sizes():
        more = one.workers - workers
        left = seat(replace(one, workers=more), rooms) if more > 0 else None
        if left is not None:
            return one.workers, left
    return workers, rooms


def seat(ask: Ask, rooms: Sequence[Room]) -> Sequence[Room] | None:
    """The rooms after seating the whole gang, or None when it does not fit."""
    left, missing = [], ask.workers
    for room in rooms:
        taken = min(missing, _capacity(room, ask))
        left.append(Room(room.cpus - taken * ask.cpus, room.gpus - taken * ask.gpus))
        missing -= taken
    return None if missing else left


def _capacity(room: Room, ask: Ask) -> int:
    by_cpus = int(room.cpus // ask.cpus)
    return min(by_cpus, int(room.gpus // ask.gpus)) if ask.gpus else by_cpus
