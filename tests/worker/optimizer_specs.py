"""Every optimizer that a specification can name, made from the settings that it has."""

from typing import Any, get_args

from torch import nn

from roadless.optim.core.positions import TwoPositions
from roadless.service.contract.job.optimizers import OptimizerSpec
from roadless.worker.setup import build_optimizer

UNION, _ = get_args(OptimizerSpec)
SPECS = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(UNION)}
OPTIMIZERS = sorted(SPECS)


def make_optimizer(model: nn.Module, **spec: Any) -> TwoPositions:
    """Of these settings, those that the optimizer has; a wrapper's rate is its base's."""
    kind = SPECS[spec["name"]]
    if "base" in kind.model_fields:
        spec["base"] = {"name": "AdamW", "lr": spec.get("lr", 0.01)}
    fields = {name: value for name, value in spec.items() if name in kind.model_fields}
    return build_optimizer(kind.model_validate(fields), params=model.parameters())
