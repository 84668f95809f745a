"""What a rank takes of its machine, looked at now and then: memory, processor time, the GPU.

Looked at by the training loop between two steps, not by a thread: the step that a sample belongs to
is then known without a lock, and a look takes less than a tenth of a millisecond every few seconds.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from worker.gpu_driver import busy_meter

#: How far two looks are apart at least.
USAGE_SECONDS: Final = 5.0

_STATM: Final = Path("/proc/self/statm")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class UsageMeter:
    """Looks at this process and its device, the first time as soon as it is asked."""

    def __init__(
        self,
        device: torch.device,
        *,
        every_seconds: float = USAGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._every_seconds = every_seconds
        self._clock = clock
        self._gpu_percent = busy_meter(device) if device.type == "cuda" else None
        self._looked_at = clock()
        self._cpu_seconds = time.process_time()
        self._due_at = self._looked_at

    def due(self) -> dict[str, float]:
        """Return what is used now, or {} when the last look was a moment ago.

        ``rss_bytes``: memory of this process; ``cpu_percent``: since the last look, 100 being one
        core. On a GPU ``gpu_allocated_bytes`` and ``gpu_reserved_bytes`` of PyTorch, and where the
        driver tells, ``gpu_percent``: for how much of the time the GPU was busy.
        """
        now = self._clock()
        if now < self._due_at:
            return {}
        self._due_at = now + self._every_seconds
        return {
            "rss_bytes": _resident_bytes(),
            "cpu_percent": self._cpu_percent(now),
            **self._gpu(),
        }

    def _cpu_percent(self, now: float) -> float:
        """Over the time since the last look; over none, 0."""
        seconds, cpu_seconds = now - self._looked_at, time.process_time()
        used, self._looked_at, self._cpu_seconds = cpu_seconds - self._cpu_seconds, now, cpu_seconds
        return 100.0 * used / seconds if seconds > 0 else 0.0

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        percent = None if self._gpu_percent is None else self._gpu_percent()
        return {
            "gpu_allocated_bytes": float(torch.cuda.memory_allocated(self._device)),
            "gpu_reserved_bytes": float(torch.cuda.memory_reserved(self._device)),
            **({} if percent is None else {"gpu_percent": percent}),
        }


def _resident_bytes() -> float:
    """The second number of statm: pages of this process that are in memory."""
    return float(int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES)
