"""Whose state a state dict is: by the name that it carries, or else by its settings and tensors.

torch loads the state of any optimizer into any other, without a word. The steps are then those of
neither, or die of a KeyError.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from roadless.optim.rules.base import Group

#: The settings that published optimizers differ in. Others were added here, or came in releases.
# fmt: off
_TELLING = frozenset((
    "alpha", "amsgrad", "beta", "beta2_decay", "beta2_scale", "betas", "centered", "dampening",
    "decay_at_z", "etas", "lambd", "lr_decay", "momentum", "momentum_decay", "nesterov",
    "ns_steps", "polyak_beta", "precondition_frequency", "r", "rho", "sf_beta1", "shampoo_beta",
    "silent_sgd_phase", "step_sizes", "warmup_steps", "weight_lr_power",
))
# fmt: on


def refusal(expected: str, seen: str) -> ValueError:
    """Return the error for a state of another optimizer; both are named."""
    return ValueError(
        f"state_dict: expected the state of {expected}, seen that of {seen}; make the optimizer "
        "that saved it, or start without a state"
    )


def has_other_settings(saved: Group, own: Set[str], defaults: Mapping[str, Any]) -> bool:
    """Return whether a group is of another optimizer, as far as its settings tell.

    It is, if it lacks settings that this one is made with, and has others that this one does not
    know. One alone is a release with fewer settings, or with more, or a user's own entry.
    """
    return bool(_TELLING & (defaults.keys() - saved.keys())) and bool(saved.keys() - own)


def name_by_settings(groups: list[Group]) -> str:
    """Return the names of those of torch's optimizers that have these settings, for a message."""
    seen = set[str]().union(*groups) - {"params"}
    fitting = {name: len(own) for name, own in _of_torch() if own <= seen and own != {"lr"}}
    names = [name for name, size in fitting.items() if size == max(fitting.values())]
    if names:
        return f"torch's {' or '.join(names)}"
    return f"an optimizer with the settings {', '.join(sorted(seen))}"


def _of_torch() -> Iterator[tuple[str, set[str]]]:
    """Return torch's optimizers by name, with their settings."""
    for name, kind in vars(torch.optim).items():
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer:
            make: Callable[..., Optimizer] = kind
            try:
                made = make([Parameter(torch.zeros(1, 1))], lr=0.0)
            except (TypeError, ValueError, RuntimeError):
                continue
            yield name, set(made.param_groups[0]) - {"params"}
