"""How busy a GPU is, as NVIDIA's driver tells by its library; where there is none, nobody knows."""

import ctypes
import logging
from collections.abc import Callable
from typing import Final

import torch

log = logging.getLogger(__name__)

_LIBRARY: Final = "libnvidia-ml.so.1"
_SUCCESS: Final = 0


class _Rates(ctypes.Structure):
    """``nvmlUtilization_t``: percent of the time of the driver's last sample period."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def busy_meter(device: torch.device) -> Callable[[], float | None] | None:
    """Return what tells for how many percent of the time the GPU was busy of late, all users of it.

    By the GPU's UUID: the driver counts devices otherwise than a process that sees some of them.
    None without the library, or when it does not know the device; the meter says None where the
    driver does not tell, as for a part of a GPU (MIG).
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
        rates = _Rates()
        answer = library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates))
        return float(rates.gpu) if answer == _SUCCESS else None

    return percent
