"""A model that a package makes: of this node, where the operator allows the factory by name, or of
the wheel that this process has an environment for.
"""

import importlib
from collections.abc import Callable

from torch import nn

from roadless.service.contract.job.models import EntryPointModel
from roadless.worker.data.base import Description
from roadless.worker.errors import JobFailed, ModelForbidden, ModelInvalid, ModelNotFound
from roadless.worker.model.sources import ENTRY_POINTS_VARIABLE
from roadless.worker.model.trial import require_outputs
from roadless.worker.rank_launch import ModelSources


def make(spec: EntryPointModel, *, data: Description, sources: ModelSources) -> nn.Module:
    """Return what the factory makes.

    Raises ModelForbidden unless the operator lists exactly this name, or in an environment of
    another wheel than the specification's, ModelNotFound without the module or function, and
    ModelInvalid when the factory fails or makes what does not fit the data.
    """
    _require_its_wheel(spec, sources)
    factory = load(spec.factory, sources=sources, forbidden=ModelForbidden, not_found=ModelNotFound)
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


def _require_its_wheel(spec: EntryPointModel, sources: ModelSources) -> None:
    if spec.wheel is None:
        return
    if sources.wheel_sha256 is None or sources.wheel_sha256 != spec.wheel_sha256:
        raise ModelForbidden(
            f"expected an environment of the wheel {spec.wheel} with SHA-256 {spec.wheel_sha256}, "
            f"saw {sources.wheel_sha256 or 'none'}"
        )


def load(
    name: str,
    *,
    sources: ModelSources,
    forbidden: Callable[[str], JobFailed],
    not_found: Callable[[str], JobFailed],
) -> Callable[..., object]:
    """Return the function ``package.module:function``; nothing is imported that is not listed.

    In the environment of a wheel the list says nothing: the process runs its user's code anyway.
    Raises ``forbidden`` unless the operator lists exactly this name, and ``not_found`` without the
    module or function.
    """
    if sources.wheel_sha256 is None and name not in sources.entry_points:
        raise forbidden(
            f"expected {name} to be listed in {ENTRY_POINTS_VARIABLE} on this node, which "
            f"has {', '.join(sources.entry_points) or 'no entry'}"
        )
    module_name, _, function_name = name.partition(":")
    try:
        function: Callable[..., object] = getattr(
            importlib.import_module(module_name), function_name
        )
    except (ImportError, AttributeError) as error:
        raise not_found(f"expected {name} to be installed on this node, saw: {error}") from error
    return function
