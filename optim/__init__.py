"""Optimizers without schedules, and the averaged point they exist for.

A library in its own right: it imports torch and numpy and nothing else of this repository. Names
are loaded when they are first used, so that the torch-free parts stay free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim.adamw import AdamWScheduleFree
    from optim.adamw_paper import AdamWScheduleFreePaper
    from optim.backends.choose import load_kernels
    from optim.batchnorm import batch_statistics, recalibrate, using_buffers
    from optim.closure import (
        AdamWScheduleFreeClosure,
        RAdamScheduleFreeClosure,
        SGDScheduleFreeClosure,
    )
    from optim.foreach import (
        ForeachAdamW,
        ForeachADOPT,
        ForeachLaProp,
        ForeachSFAdamW,
        PaLMForeachSFAdamW,
    )
    from optim.points import at_average, averaged_point
    from optim.radam import RAdamScheduleFree
    from optim.reference import (
        AdamWScheduleFreeReference,
        RAdamScheduleFreeReference,
        SGDScheduleFreeReference,
    )
    from optim.schedule_free_plus import AdamCScheduleFreePlusPaper
    from optim.sgd import SGDScheduleFree
    from optim.soap.names import (
        ForeachSOAP,
        PaLMForeachSOAP,
        PrecondScheduleForeachSOAP,
        PrecondSchedulePaLMForeachSOAP,
        PrecondScheduleSFPaLMForeachSOAP,
        PrecondScheduleSFPaLMSOAP,
        SFPaLMForeachSOAP,
    )
    from optim.soap.optimizer import SOAP
    from optim.wrapper import ScheduleFreeWrapper, ScheduleFreeWrapperReference

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
    "AdamCScheduleFreePlusPaper": "optim.schedule_free_plus",
    "AdamWScheduleFree": "optim.adamw",
    "AdamWScheduleFreeClosure": "optim.closure",
    "AdamWScheduleFreePaper": "optim.adamw_paper",
    "AdamWScheduleFreeReference": "optim.reference",
    "ForeachADOPT": "optim.foreach",
    "ForeachAdamW": "optim.foreach",
    "ForeachLaProp": "optim.foreach",
    "ForeachSFAdamW": "optim.foreach",
    "ForeachSOAP": "optim.soap.names",
    "PaLMForeachSFAdamW": "optim.foreach",
    "PaLMForeachSOAP": "optim.soap.names",
    "PrecondScheduleForeachSOAP": "optim.soap.names",
    "PrecondSchedulePaLMForeachSOAP": "optim.soap.names",
    "PrecondScheduleSFPaLMForeachSOAP": "optim.soap.names",
    "PrecondScheduleSFPaLMSOAP": "optim.soap.names",
    "RAdamScheduleFree": "optim.radam",
    "RAdamScheduleFreeClosure": "optim.closure",
    "RAdamScheduleFreeReference": "optim.reference",
    "SFPaLMForeachSOAP": "optim.soap.names",
    "SGDScheduleFree": "optim.sgd",
    "SGDScheduleFreeClosure": "optim.closure",
    "SGDScheduleFreeReference": "optim.reference",
    "SOAP": "optim.soap.optimizer",
    "ScheduleFreeWrapper": "optim.wrapper",
    "ScheduleFreeWrapperReference": "optim.wrapper",
    "at_average": "optim.points",
    "averaged_point": "optim.points",
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
