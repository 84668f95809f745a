"""From the spec to live objects: one ``match`` per choice, and nothing else knows the names.

A fork server imports this module, and through it everything that a rank needs.
"""

from collections.abc import Callable, Iterable
from typing import assert_never

import torch
from torch import nn

import optim
from optim.positions import TwoPositions
from service.contract.data import DataSpec, DigitsData, FileBytesData, PythonStdlibBytesData
from service.contract.models import ConvnetPreset, GptPreset, MlpPreset, ModelSpec
from service.contract.optimizers import OptimizerSpec, ScheduleFreeWrapperSpec
from worker.data import file_bytes, stdlib_bytes
from worker.data.base import DataSet, Description
from worker.data.digits import Digits
from worker.model.convnet import Convnet
from worker.model.gpt import Gpt
from worker.model.mlp import Mlp

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


def build_data(spec: DataSpec, *, model: ModelSpec, roots: Iterable[str] = ()) -> DataSet:
    """Return the data set, cut for this model. Raises the JobFailed errors named ``Data...``.

    ``roots``: folders of this node that jobs may read files from.
    """
    match spec:
        case DigitsData():
            return Digits()
        case PythonStdlibBytesData():
            return stdlib_bytes.load(context=_context(model))
        case FileBytesData(path=path):
            return file_bytes.load(path, context=_context(model), roots=roots)
        case _:
            assert_never(spec)


def build_model(spec: ModelSpec, *, data: Description, seed: int) -> nn.Module:
    """Return the model on the CPU. Its weights are a function of the arguments alone.

    ``seed``: in [0, 2**63). The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        match spec:
            case MlpPreset():
                return Mlp(spec, data=data)
            case ConvnetPreset():
                return Convnet(spec, data=data)
            case GptPreset():
                return Gpt(spec, data=data)
            case _:
                assert_never(spec)


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


def _context(model: ModelSpec) -> int:
    assert isinstance(model, GptPreset), f"expected a model over tokens, saw {model.name}"
    return model.context
