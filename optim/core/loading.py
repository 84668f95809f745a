"""What is asked of a state that is to be loaded, before anything of the optimizer changes.

A state may come from torch.save, from the authors' library, from an earlier release, or flattened
by name through torch's distributed checkpoint; and hooks may have rewritten it on the way.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from roadless.optim.rules.base import Group

StateDict = dict[str, Any]


@contextmanager
def inside_hooks(
    optimizer: Optimizer,
    *,
    read: Callable[[StateDict], StateDict],
    finish: Callable[[], None],
) -> Iterator[None]:
    """While the block loads a state, stand between the user's hooks and the loading itself.

    ``read`` gets what the last pre-hook returned, and its result is loaded; ``finish`` runs before
    the first post-hook. torch (2.13.0) loads what a pre-hook returns, and not what it was given.
    """
    handles = [
        optimizer.register_load_state_dict_pre_hook(lambda _, given: read(given)),
        optimizer.register_load_state_dict_post_hook(lambda _: finish(), prepend=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cleaned(state_dict: Mapping[str, Any]) -> StateDict:
    """Return a state dict in the form that torch's ``state_dict()`` gives it; nothing is copied.

    Numbers of numpy become plain ones, its arrays tensors. Empty dicts go: they are what torch's
    distributed checkpoint (2.13.0, ``_unflatten_optim_state_dict``) puts for a tensor that a
    flattened checkpoint does not have.

    Raises:
        ValueError: it is not a state dict.
    """
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            f"state_dict: expected 'state' and 'param_groups', seen {sorted(map(str, state_dict))}"
        )
    states = {key: _without_numpy(value) for key, value in state_dict["state"].items()}
    groups = [_without_numpy(group) for group in state_dict["param_groups"]]
    return dict(state_dict) | {
        "state": {key: _without_empty(value) for key, value in states.items()},
        "param_groups": groups,
    }


def _without_numpy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {name: _without_numpy(one) for name, one in value.items()}
    return value


def _without_empty(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    return {name: value for name, value in state.items() if value != {} or _is_tensor(value)}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def require_groups(saved: list[Group], own: list[Group]) -> None:
    """Refuse groups of other sizes.

    Raises:
        ValueError: with the sizes of both.
    """
    sizes = [[len(group["params"]) for group in groups] for groups in (own, saved)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"state_dict: expected a parameter group for each of the optimizer's, with "
            f"{sizes[0]} parameters, seen {sizes[1]}; make the same groups, in the same order"
        )


def require_order(saved: list[Group], own: list[Group]) -> None:
    """Refuse the same parameters in another order, where both have their names.

    torch (2.13.0) goes by places alone. A distributed checkpoint has names for keys, and has
    brought them into the optimizer's order.

    Raises:
        ValueError: with the first place that differs.
    """
    names = [[name for g in groups for name in g.get("param_names", ())] for groups in (own, saved)]
    has_names_for_keys = any(isinstance(key, str) for group in saved for key in group["params"])
    if has_names_for_keys or names[0] == names[1] or set(names[0]) != set(names[1]):
        return
    mine, theirs = next(pair for pair in zip(*names, strict=True) if pair[0] != pair[1])
    raise ValueError(
        f"state_dict: expected parameters in the optimizer's order, {mine} here, seen {theirs}; "
        "register_load_state_dict_pre_hook() takes a function that brings them into it"
    )


def members(saved: list[Group], own: list[Group]) -> dict[Any, tuple[Tensor, Group, str]]:
    """Return, by the saved key of a parameter, the parameter, its saved group and its name."""
    found: dict[Any, tuple[Tensor, Group, str]] = {}
    for number, (theirs, mine) in enumerate(zip(saved, own, strict=True)):
        names = mine.get("param_names") or [None] * len(mine["params"])
        pairs = zip(theirs["params"], mine["params"], names, strict=True)
        for place, (key, parameter, name) in enumerate(pairs):
            known = key if isinstance(key, str) else name
            found[key] = parameter, theirs, known or f"parameter {place} of group {number}"
    return found


def require_known(states: Mapping[Any, Any], known: Mapping[Any, Any]) -> None:
    """Refuse states of parameters that are in no group, and what is no state.

    Raises:
        ValueError: with their keys.
    """
    if strange := [key for key, state in states.items() if not isinstance(state, dict)]:
        raise ValueError(f"state_dict: expected a dict for each parameter, seen none at {strange}")
    if strays := [key for key in states if key not in known]:
        raise ValueError(
            f"state_dict: expected states of parameters of its groups, seen those of {strays}"
        )


def require_complete(given: Any, read: Mapping[str, Any], names: Iterable[str], of: str) -> None:
    """Refuse a state that lacks tensors which torch's flattened checkpoint left empty.

    Raises:
        ValueError: with the parameter and what is missing.
    """
    missing = sorted(set(names) & (given.keys() - read.keys()))
    if read and missing:
        raise ValueError(
            f"state_dict: expected {', '.join(missing)} for {of}, seen only "
            f"{', '.join(sorted(read))}; the checkpoint lacks them"
        )


def require_some(states: Mapping[Any, Mapping[str, Any]], *, num_steps: int) -> None:
    """Refuse a state that was lost on the way.

    torch's distributed checkpoint loads a flattened state by the names that are in the optimizer's
    own, and makes none where gradients exist (2.13.0, ``_init_optim_state``): all is then dropped
    in silence.

    Raises:
        ValueError: after steps, all parameters are listed without a state.
    """
    if num_steps and states and not any(states.values()):
        raise ValueError(
            f"state_dict: expected the state of parameters after {num_steps} steps, seen none; "
            "call zero_grad(set_to_none=True) before a flattened checkpoint is loaded, so that "
            "torch can make a state to load into"
        )


def require_saved_shape(
    name: str, tensor: Tensor, *, shapes: Iterable[torch.Size], of: str
) -> None:
    """Refuse a tensor of another shape than its parameter's.

    Raises:
        ValueError: with both shapes.
    """
    allowed = list(dict.fromkeys(tuple(shape) for shape in shapes))
    if tuple(tensor.shape) not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(
            f"state_dict: expected {name} of {of} in the shape {expected}, seen "
            f"{tuple(tensor.shape)}; is it the state of another model?"
        )
