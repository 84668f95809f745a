"""Optimizers that need no schedule, and the averaged point they produce.

A standalone library: it imports torch and numpy, and nothing from the rest of this repository.
Names are loaded on first use, so that the torch-free parts stay free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roadless.optim.backends.choose import load_kernels
    from roadless.optim.batchnorm import batch_statistics, recalibrate
    from roadless.optim.buffers import using_buffers
    from roadless.optim.core.points import at_average, averaged_point
    from roadless.optim.heavyball import (
        ForeachAdamW,
        ForeachADOPT,
        ForeachLaProp,
        ForeachSFAdamW,
        PaLMForeachSFAdamW,
    )
    from roadless.optim.schedule_free.adamw import AdamWScheduleFree
    from roadless.optim.schedule_free.adamw_paper import AdamWScheduleFreePaper
    from roadless.optim.schedule_free.closure import (
        AdamWScheduleFreeClosure,
        RAdamScheduleFreeClosure,
        SGDScheduleFreeClosure,
    )
    from roadless.optim.schedule_free.plus import AdamCScheduleFreePlusPaper
    from roadless.optim.schedule_free.radam import RAdamScheduleFree
    from roadless.optim.schedule_free.reference import (
        AdamWScheduleFreeReference,
        RAdamScheduleFreeReference,
        SGDScheduleFreeReference,
    )
    from roadless.optim.schedule_free.sgd import SGDScheduleFree
    from roadless.optim.schedule_free.wrapper import (
        ScheduleFreeWrapper,
        ScheduleFreeWrapperReference,
    )
    from roadless.optim.soap.heavyball import (
        ForeachSOAP,
        PaLMForeachSOAP,
        PrecondScheduleForeachSOAP,
        PrecondSchedulePaLMForeachSOAP,
        PrecondScheduleSFPaLMForeachSOAP,
        PrecondScheduleSFPaLMSOAP,
        SFPaLMForeachSOAP,
    )
    from roadless.optim.soap.optimizer import SOAP

__all__ = [
    "SOAP",
    "AdamCScheduleFreePlusPaper",
    "AdamWScheduleFree",
    "AdamWScheduleFreeClosure",
    "AdamWScheduleFreePaper",
    "AdamWScheduleFreeReference",
    "ForeachADOPT",
    "ForeachAdamW",
    "ForeachLaProp",
    "ForeachSFAdamW",
    "ForeachSOAP",
    "PaLMForeachSFAdamW",
    "PaLMForeachSOAP",
    "PrecondScheduleForeachSOAP",
    "PrecondSchedulePaLMForeachSOAP",
    "PrecondScheduleSFPaLMForeachSOAP",
    "PrecondScheduleSFPaLMSOAP",
    "RAdamScheduleFree",
    "RAdamScheduleFreeClosure",
    "RAdamScheduleFreeReference",
    "SFPaLMForeachSOAP",
    "SGDScheduleFree",
    "SGDScheduleFreeClosure",
    "SGDScheduleFreeReference",
    "ScheduleFreeWrapper",
    "ScheduleFreeWrapperReference",
    "at_average",
    "averaged_point",
    "batch_statistics",
    "load_kernels",
    "recalibrate",
    "using_buffers",
]

_HOMES = {
    "AdamCScheduleFreePlusPaper": "roadless.optim.schedule_free.plus",
    "AdamWScheduleFree": "roadless.optim.schedule_free.adamw",
    "AdamWScheduleFreeClosure": "roadless.optim.schedule_free.closure",
    "AdamWScheduleFreePaper": "roadless.optim.schedule_free.adamw_paper",
    "AdamWScheduleFreeReference": "roadless.optim.schedule_free.reference",
    "ForeachADOPT": "roadless.optim.heavyball",
    "ForeachAdamW": "roadless.optim.heavyball",
    "ForeachLaProp": "roadless.optim.heavyball",
    "ForeachSFAdamW": "roadless.optim.heavyball",
    "ForeachSOAP": "roadless.optim.soap.heavyball",
    "PaLMForeachSFAdamW": "roadless.optim.heavyball",
    "PaLMForeachSOAP": "roadless.optim.soap.heavyball",
    "PrecondScheduleForeachSOAP": "roadless.optim.soap.heavyball",
    "PrecondSchedulePaLMForeachSOAP": "roadless.optim.soap.heavyball",
    "PrecondScheduleSFPaLMForeachSOAP": "roadless.optim.soap.heavyball",
    "PrecondScheduleSFPaLMSOAP": "roadless.optim.soap.heavyball",
    "RAdamScheduleFree": "roadless.optim.schedule_free.radam",
    "RAdamScheduleFreeClosure": "roadless.optim.schedule_free.closure",
    "RAdamScheduleFreeReference": "roadless.optim.schedule_free.reference",
    "SFPaLMForeachSOAP": "roadless.optim.soap.heavyball",
    "SGDScheduleFree": "roadless.optim.schedule_free.sgd",
    "SGDScheduleFreeClosure": "roadless.optim.schedule_free.closure",
    "SGDScheduleFreeReference": "roadless.optim.schedule_free.reference",
    "SOAP": "roadless.optim.soap.optimizer",
    "ScheduleFreeWrapper": "roadless.optim.schedule_free.wrapper",
    "ScheduleFreeWrapperReference": "roadless.optim.schedule_free.wrapper",
    "at_average": "roadless.optim.core.points",
    "averaged_point": "roadless.optim.core.points",
    "batch_statistics": "roadless.optim.batchnorm",
    "load_kernels": "roadless.optim.backends.choose",
    "recalibrate": "roadless.optim.batchnorm",
    "using_buffers": "roadless.optim.buffers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
