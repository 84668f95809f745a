"""A model that a package on this node makes, where the operator allows the factory by name."""

import importlib
from collections.abc import Callable

from torch import nn

from service.contract.models import EntryPointModel
from worker.data.base import Description
from worker.errors import ModelForbidden, ModelInvalid, ModelNotFound
from worker.model.sources import ENTRY_POINTS_VARIABLE, ModelSources
from worker.model.trial import require_outputs


def make(spec: EntryPointModel, *, data: Description, sources: ModelSources) -> nn.Module:
    """Return what the factory makes.

    Raises ModelForbidden unless the operator lists exactly this name, ModelNotFound without the
    module or function, and ModelInvalid when the factory fails or makes what does not fit the data.
    """
    if spec.factory not in sources.entry_points:
        raise ModelForbidden(
            f"expected {spec.factory} to be listed in {ENTRY_POINTS_VARIABLE} on this node, which "
            f"has {', '.join(sources.entry_points) or 'no entry'}"
        )
    factory = _load(spec.factory)
    try:
        model = factory(
            input_shape=data.input_shape, num_outputs=data.num_outputs, **spec.arguments
        )
    except Exception as error:
        raise ModelInvalid(
            f"expected {spec.factory} to make a model, saw {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelInvalid(
            f"expected {spec.factory} to return a torch module, saw {type(model).__name__}"
        )
    require_outputs(model, data=data)
    return model


def _load(name: str) -> Callable[..., object]:
    module_name, _, function_name = name.partition(":")
    try:
        factory: Callable[..., object] = getattr(
            importlib.import_module(module_name), function_name
        )
    except (ImportError, AttributeError) as error:
        raise ModelNotFound(
            f"expected {name} to be installed on this node, saw: {error}"
        ) from error
    return factory
