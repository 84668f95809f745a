"""From the spec to live objects: one ``match`` per choice, and nothing else knows the names.

A fork server imports this module, and through it everything that a rank needs.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

import optim
from optim.positions import TwoPositions
from service.contract.optimizers import OptimizerSpec, ScheduleFreeWrapperSpec

#: The contract's short names; every other name is that of the class.
_CLASS_OF_SHORT_NAME = {
    "sgd_schedulefree": "SGDScheduleFree",
    "adamw_schedulefree": "AdamWScheduleFree",
    "adamw_schedulefree_paper": "AdamWScheduleFreePaper",
    "radam_schedulefree": "RAdamScheduleFree",
    "adamc_schedulefree_plus": "AdamCScheduleFreePlusPaper",
    "schedulefree_wrapper": "ScheduleFreeWrapper",
    "adamw": "ForeachAdamW",
    "laprop": "ForeachLaProp",
    "adopt": "ForeachADOPT",
    "soap": "SOAP",
}


def build_optimizer(spec: OptimizerSpec, *, params: Iterable[nn.Parameter]) -> TwoPositions:
    """Return the optimizer. The spec's fields are the optimizer's arguments, under their names."""
    make = optimizer_class(spec.name)
    if isinstance(spec, ScheduleFreeWrapperSpec):
        make_base = getattr(torch.optim, spec.base.name)
        base = make_base(params, **spec.base.model_dump(exclude={"name"}))
        return make(base, **spec.model_dump(exclude={"name", "base"}))
    return make(params, **spec.model_dump(exclude={"name"}))


def optimizer_class(name: str) -> Callable[..., TwoPositions]:
    """The class of ``optim`` that a name of the contract means."""
    found: Callable[..., TwoPositions] = getattr(optim, _CLASS_OF_SHORT_NAME.get(name, name))
    return found
