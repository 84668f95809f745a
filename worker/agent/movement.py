"""When the ranks of each attempt were last seen to use processor time.

A frozen rank is alive to the kernel, and so to its agent; what it lacks is progress. A slow one, or
one that waits for the service for minutes, still wakes up now and then.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

#: The least time between two looks at the processes.
LOOK_SECONDS = 1.0

_NOTHING = 0.0


@dataclass(frozen=True, slots=True)
class _Seen:
    cpu_seconds: float
    moved_at: float


class Movements:
    """Remembers how much processor time attempts had used. May be called from any thread.

    ``used_seconds``: what each of these sessions has used, by the pid of its leader.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        used_seconds: Callable[[Collection[int]], Mapping[int, float]] | None = None,
    ) -> None:
        self._clock = clock
        self._used_seconds = used_seconds or session_cpu_seconds
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._looked_at = float("-inf")

    def still_seconds(self, pids: Mapping[str, Collection[int]]) -> dict[str, float]:
        """Return for how long no rank of each attempt has been seen to move.

        ``pids``: the ranks' processes by attempt. An attempt that is new here has just moved.
        """
        with self._lock:
            now = self._clock()
            new = pids.keys() - self._seen.keys()
            self._seen = {key: self._seen.get(key, _Seen(_NOTHING, now)) for key in pids}
            if new or now - self._looked_at >= LOOK_SECONDS:
                self._look(pids, now)
            return {key: now - seen.moved_at for key, seen in self._seen.items()}

    def _look(self, pids: Mapping[str, Collection[int]], now: float) -> None:
        self._looked_at = now
        used = self._used_seconds({pid for ranks in pids.values() for pid in ranks})
        for attempt_id, ranks in pids.items():
            total = sum(used.get(pid, _NOTHING) for pid in ranks)
            if total != self._seen[attempt_id].cpu_seconds:
                self._seen[attempt_id] = _Seen(total, now)


def session_cpu_seconds(leaders: Collection[int]) -> dict[int, float]:
    """Return the processor time of all processes in each session, by the pid of its leader.

    A rank leads a session, which everything that it starts is in; what has ended is counted by the
    process that has reaped it.
    """
    used = dict.fromkeys(leaders, _NOTHING)
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError, psutil.Error):
            if (leader := os.getsid(pid)) in used:
                used[leader] += sum(psutil.Process(pid).cpu_times()[:4])
    return used
