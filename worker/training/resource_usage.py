"""What a rank uses of its machine, measured periodically: memory, processor time, the GPU.

Measured by the training loop between two steps, not by a thread: the step that a sample belongs to
is then known without a lock, and it takes less than a tenth of a millisecond every few seconds.
GPU utilization comes from the driver's library, where there is one.
"""

import ctypes
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

log = logging.getLogger(__name__)

_LIBRARY: Final = "libnvidia-ml.so.1"
_SUCCESS: Final = 0
#: The least time between two measurements.
USAGE_SECONDS: Final = 5.0
_STATM: Final = Path("/proc/self/statm")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class UsageMeter:
    """Measures this process and its device, for the first time at the first call."""

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
        """Return the current usage, or {} when the last measurement is too recent.

        ``rss_bytes``: memory of this process; ``cpu_percent``: since the last measurement; 100 is
        one core. On a GPU also ``gpu_allocated_bytes`` and ``gpu_reserved_bytes`` of PyTorch and,
        if the driver reports it, ``gpu_percent``: the share of time that the GPU was busy.
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
        """Since the last measurement; 0 if no time has passed."""
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


def busy_meter(device: torch.device) -> Callable[[], float | None] | None:
    """Return a meter of the percentage of recent time that the GPU was busy, with any user.

    By the GPU's UUID: the driver numbers devices differently from a process that sees some of them.
    None without the library, or when it does not know the device; the meter returns None if the
    driver reports nothing, as for a part of a GPU (MIG).
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    handle = ctypes.c_void_p()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    is_known = (
        library.nvmlInit_v2() == _SUCCESS
        and library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == _SUCCESS
    )
    if not is_known:
        log.info("the driver's library does not know the GPU %s", uuid.decode())
        return None

    def percent() -> float | None:
        utilization = _Utilization()
        answer = library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(utilization))
        return float(utilization.gpu) if answer == _SUCCESS else None

    return percent


class _Utilization(ctypes.Structure):
    """``nvmlUtilization_t``: percent of the time of the driver's last sample period."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def _resident_bytes() -> float:
    """The second number of statm: pages of this process that are in memory."""
    return float(int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES)
