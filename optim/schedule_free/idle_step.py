"""What state a base keeps for its parameters, found out by a step that is undone.

torch's optimizers make their state in their first step, and only then is it known. Here the base
takes the step that torch's distributed checkpoint asks for (`roadless.optim.core.initial_states`),
and is put back as it was: counters, estimates and buffers, and those of its attributes that are
numbers, tensors, or containers of such.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from roadless.optim.core.saved_optimizer import State

#: In place of a count of steps, before there is one.
NO_STEP = -1


@torch.no_grad()
def initial_states_of(base: Optimizer) -> dict[Tensor, State]:
    """Return the names and forms of a base's state, by parameter, without what it has learnt.

    Buffers are zeros, and single numbers -1, which no count of steps is.
    Every lr is 0 and every gradient zero. A base that fails in such a step has no state to read;
    the error is its own, and is seen in a real step.
    """
    put_back = _kept(vars(base), {})
    try:
        base.step()
        states = {key: state for key, state in base.state.items() if isinstance(key, Tensor)}
        return {parameter: _emptied(state) for parameter, state in states.items()}
    except Exception:
        # Raised from here it would pass through torch's _init_optim_state (2.13.0), which then
        # leaves every lr at 0.
        return {}
    finally:
        put_back()


def _emptied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros_like(value) if value.dim() else torch.full_like(value, NO_STEP)
    if isinstance(value, dict):
        return {name: _emptied(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_emptied(one) for one in value)
    return type(value)(NO_STEP) if isinstance(value, int | float) else value


def is_emptied(state: Any) -> bool:
    """Return whether a state is one of `initial_states_of`."""
    if isinstance(state, Tensor):
        return not bool(state.any()) if state.dim() else float(state) == float(_emptied(state))
    if isinstance(state, dict):
        return all(is_emptied(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(is_emptied(value) for value in state)
    return not isinstance(state, int | float) or state == _emptied(state)


def _kept(value: Any, known: dict[int, Callable[[], Any]]) -> Callable[[], Any]:
    """Return a function that gives a value back as it is now, in the same objects.

    ``known``: the functions for objects seen before, by their ids.
    """
    if id(value) in known:
        return known[id(value)]
    known[id(value)] = lambda: value
    if isinstance(value, Tensor):
        known[id(value)] = _kept_tensor(value)
    elif isinstance(value, dict):
        known[id(value)] = _kept_dict(value, known)
    elif isinstance(value, list):
        known[id(value)] = _kept_list(value, known)
    return known[id(value)]


def _kept_tensor(value: Tensor) -> Callable[[], Tensor]:
    copy = value.detach().clone()

    def put_back() -> Tensor:
        value.data.copy_(copy)
        return value

    return put_back


def _kept_dict(value: State, known: dict[int, Callable[[], Any]]) -> Callable[[], State]:
    parts = {name: _kept(one, known) for name, one in value.items()}

    def put_back() -> State:
        then = {name: part() for name, part in parts.items()}
        value.clear()
        value.update(then)
        return value

    return put_back


def _kept_list(value: list[Any], known: dict[int, Callable[[], Any]]) -> Callable[[], list[Any]]:
    parts = [_kept(one, known) for one in value]

    def put_back() -> list[Any]:
        value[:] = [part() for part in parts]
        return value

    return put_back
