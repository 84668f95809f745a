"""Models made by a factory function of a package.

The package is on this node, where the operator allows the factory by name, or is the wheel in whose
environment this process runs.
"""

import importlib
from collections.abc import Callable

from torch import nn

from roadless.service.contract.job.models import EntryPointModel
from roadless.worker.data.base import Description
from roadless.worker.errors import JobFailed, ModelForbidden, ModelInvalid, ModelNotFound
from roadless.worker.model.faults import blaming, told
from roadless.worker.model.sources import ENTRY_POINTS_VARIABLE
from roadless.worker.model.trial import require_outputs
from roadless.worker.rank_launch import ModelSources


def make(spec: EntryPointModel, *, data: Description, sources: ModelSources) -> nn.Module:
    """Return what the factory makes.

    Raises ModelForbidden unless the operator lists exactly this name, or in the environment of a
    wheel other than the specification's; ModelNotFound without the module or function; and
    ModelInvalid when the factory fails or its model does not fit the data.
    """
    _require_its_wheel(spec, sources)
    factory = load(
        spec.factory,
        sources=sources,
        forbidden=ModelForbidden,
        not_found=ModelNotFound,
        broken=ModelInvalid,
    )
    with blaming(ModelInvalid, f"{spec.factory} to make a model"):
        model = factory(
            input_shape=data.input_shape, num_outputs=data.num_outputs, **spec.arguments
        )
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
    broken: Callable[[str], JobFailed],
) -> Callable[..., object]:
    """Return the function ``package.module:function``; only listed names are imported.

    In the environment of a wheel the list does not apply: the process runs its user's code anyway.
    Raises ``forbidden`` unless the operator lists exactly this name, ``not_found`` without the
    module or function, and ``broken`` when importing the module fails in its own code.
    """
    if sources.wheel_sha256 is None and name not in sources.entry_points:
        raise forbidden(
            f"expected {name} to be listed in {ENTRY_POINTS_VARIABLE} on this node, which "
            f"has {', '.join(sources.entry_points) or 'no entry'}"
        )
    module_name, _, function_name = name.partition(":")
    with blaming(broken, f"to import {module_name}"):
        try:
            function: Callable[..., object] = getattr(
                importlib.import_module(module_name), function_name
            )
        except (ImportError, AttributeError) as error:
            raise not_found(
                f"expected {name} to be installed on this node, saw {told(error)}"
            ) from error
    return function
