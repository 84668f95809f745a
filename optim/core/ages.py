"""How many gradients a tensor has had: what the bias correction of its moments counts.

torch and SOAP count per tensor. A group here counts its steps, as schedulefree 1.4.1 does; by that
count the moments of a parameter that is unfrozen late look converged when they are almost empty,
and its first steps are longer than the learning rate by up to 1 / √(1 - β₂).

So a tensor remembers the steps of its group that it missed, as ``missed`` in its state. One that
has had a gradient in every step remembers nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from roadless.optim.averaging import Pace, warmed_up
from roadless.optim.rules.base import Group, State, TensorList

_NAME = "missed"


def missed_by(state: State) -> int:
    """Return how many steps of its group the tensor has had no gradient in."""
    missed = state.get(_NAME)
    if missed is None:
        return 0
    if missed.device.type != "cpu":
        # Brought to the parameter's device by loading; reading it there would wait for the device.
        state[_NAME] = missed = missed.cpu()
    return int(missed)


def note_missed(state: State, num_steps: int) -> None:
    """Add to the number of steps that the tensor has missed."""
    if num_steps:
        missed = missed_by(state) + num_steps
        state[_NAME] = torch.tensor(missed, dtype=torch.int64, device="cpu")


def note_none_missed(state: State) -> None:
    """Write down that the tensor has missed nothing, if nothing else is written."""
    if _NAME not in state:
        state[_NAME] = torch.zeros((), dtype=torch.int64, device="cpu")


def count_missed(group: Group, states: Mapping[Any, State], *, active: TensorList) -> None:
    """Note a missed step for every tensor of the group that has a state and no gradient now."""
    if len(active) == len(group["params"]):
        return
    for parameter in group["params"]:
        state = states.get(parameter)
        if parameter.grad is None and state:
            note_missed(state, 1)


def by_missed(
    parameters: TensorList, states: Mapping[Any, State], *, of_new: int
) -> dict[int, TensorList]:
    """Return the parameters by the number of steps that they missed, in their order.

    Args:
        parameters: those that have a gradient.
        states: by parameter.
        of_new: what a parameter without a state has missed: all earlier steps of its group.
    """
    found: dict[int, TensorList] = {}
    for parameter in parameters:
        state = states.get(parameter)
        missed = missed_by(state) if state else of_new
        found.setdefault(missed, []).append(parameter)
    return found


def own_pace(
    pace: Pace, group: Group, *, missed: int, lr_factor: Callable[[Group, int], float]
) -> Pace:
    """Return the pace of tensors that missed steps: their age, and γ with the factor at that age.

    Warmup and c remain the group's.
    """
    if not missed:
        return pace
    lr = warmed_up(float(group["lr"]), pace.t, warmup_steps=group.get("warmup_steps", 0))
    return replace(pace, missed=missed, lr=lr * lr_factor(group, pace.t - missed))
