"""Optimizers without schedules, and the averaged point they exist for.

A library in its own right: it imports torch and numpy and nothing else of this repository. Names
are loaded when they are first used, so that the torch-free parts stay free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim.backends.choose import load_kernels
    from optim.batchnorm import batch_statistics, recalibrate, using_buffers
    from optim.core.points import at_average, averaged_point
    from optim.heavyball import (
        ForeachAdamW,
        ForeachADOPT,
        ForeachLaProp,
        ForeachSFAdamW,
        PaLMForeachSFAdamW,
    )
    from optim.schedule_free.adamw import AdamWScheduleFree
    from optim.schedule_free.adamw_paper import AdamWScheduleFreePaper
    from optim.schedule_free.closure import (
        AdamWScheduleFreeClosure,
        RAdamScheduleFreeClosure,
        SGDScheduleFreeClosure,
    )
    from optim.schedule_free.plus import AdamCScheduleFreePlusPaper
    from optim.schedule_free.radam import RAdamScheduleFree
    from optim.schedule_free.reference import (
        AdamWScheduleFreeReference,
        RAdamScheduleFreeReference,
        SGDScheduleFreeReference,
    )
    from optim.schedule_free.sgd import SGDScheduleFree
    from optim.schedule_free.wrapper import ScheduleFreeWrapper, ScheduleFreeWrapperReference
    from optim.soap.heavyball import (
        ForeachSOAP,
        PaLMForeachSOAP,
        PrecondScheduleForeachSOAP,
        PrecondSchedulePaLMForeachSOAP,
        PrecondScheduleSFPaLMForeachSOAP,
        PrecondScheduleSFPaLMSOAP,
        SFPaLMForeachSOAP,
    )
    from optim.soap.optimizer import SOAP

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
    "AdamCScheduleFreePlusPaper": "optim.schedule_free.plus",
    "AdamWScheduleFree": "optim.schedule_free.adamw",
    "AdamWScheduleFreeClosure": "optim.schedule_free.closure",
    "AdamWScheduleFreePaper": "optim.schedule_free.adamw_paper",
    "AdamWScheduleFreeReference": "optim.schedule_free.reference",
    "ForeachADOPT": "optim.heavyball",
    "ForeachAdamW": "optim.heavyball",
    "ForeachLaProp": "optim.heavyball",
    "ForeachSFAdamW": "optim.heavyball",
    "ForeachSOAP": "optim.soap.heavyball",
    "PaLMForeachSFAdamW": "optim.heavyball",
    "PaLMForeachSOAP": "optim.soap.heavyball",
    "PrecondScheduleForeachSOAP": "optim.soap.heavyball",
    "PrecondSchedulePaLMForeachSOAP": "optim.soap.heavyball",
    "PrecondScheduleSFPaLMForeachSOAP": "optim.soap.heavyball",
    "PrecondScheduleSFPaLMSOAP": "optim.soap.heavyball",
    "RAdamScheduleFree": "optim.schedule_free.radam",
    "RAdamScheduleFreeClosure": "optim.schedule_free.closure",
    "RAdamScheduleFreeReference": "optim.schedule_free.reference",
    "SFPaLMForeachSOAP": "optim.soap.heavyball",
    "SGDScheduleFree": "optim.schedule_free.sgd",
    "SGDScheduleFreeClosure": "optim.schedule_free.closure",
    "SGDScheduleFreeReference": "optim.schedule_free.reference",
    "SOAP": "optim.soap.optimizer",
    "ScheduleFreeWrapper": "optim.schedule_free.wrapper",
    "ScheduleFreeWrapperReference": "optim.schedule_free.wrapper",
    "at_average": "optim.core.points",
    "averaged_point": "optim.core.points",
    "batch_statistics": "optim.batchnorm",
    "load_kernels": "optim.backends.choose",
    "recalibrate": "optim.batchnorm",
    "using_buffers": "optim.batchnorm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optim' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
