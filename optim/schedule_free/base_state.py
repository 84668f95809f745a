"""The state of a base inside that of its wrapper: under ``base.`` names, and back.

A base may save in a way of its own, keep values beside the states of parameters (MADGRAD 1.3 its
counter, as ``state["k"]``), and have hooks; all are asked, once each.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from roadless.optim.core.loading import StateDict, inside_hooks
from roadless.optim.core.saved_optimizer import SavedOptimizer, State
from roadless.optim.numerics.precision import working_dtype

#: Prefix of the base's names.
BASE = "base."
#: Prefix of values that are in the base's ``state``, but are not of a parameter.
_GLOBAL = "base.state."
#: What every state dict has, beside what a base may add.
_OWN = ("state", "param_groups")


def form_of(base: Optimizer) -> str:
    """Return a name that is equal for bases whose steps are the same.

    It is the class that defines the step: a subclass that only adds a log keeps its parent's state,
    and torch's AdamW is Adam with a setting. By qualified name, as torch replaces the function.
    """
    if isinstance(base, SavedOptimizer):
        return str(base._lineage()["form"])
    return str(type(base).step.__qualname__.split(".")[-2])


def prefixed(state: Mapping[str, Any]) -> State:
    """Return a base's state under the wrapper's names."""
    return {f"{BASE}{name}": value for name, value in state.items()}


def split(state: Mapping[str, Any]) -> tuple[State, State]:
    """Return the wrapper's own part of a state, and the base's under its own names."""
    own = {name: value for name, value in state.items() if not name.startswith(BASE)}
    base = {n.removeprefix(BASE): v for n, v in state.items() if n.startswith(BASE)}
    return own, base


def globals_in(saved: Mapping[str, Any]) -> State:
    """Return what a base saves beside states of parameters and groups, under the wrapper's names.

    Args:
        saved: its state dict, or one with its live state.
    """
    states = {k: v for k, v in saved["state"].items() if not isinstance(k, Tensor | int)}
    others = {name: value for name, value in saved.items() if name not in _OWN}
    return {f"{_GLOBAL}{name}": value for name, value in states.items()} | prefixed(others)


def load_base(base: Optimizer, saved: StateDict, values: State) -> None:
    """Load a base's state, with tensors in their own dtype.

    Args:
        base: has the same groups.
        saved: states of parameters and groups.
        values: what `globals_in` returned when it was saved.
    """
    at_top = {n.removeprefix(BASE): v for n, v in values.items() if not n.startswith(_GLOBAL)}
    states = {n.removeprefix(_GLOBAL): v for n, v in values.items() if n.startswith(_GLOBAL)}
    whole = saved | at_top | {"state": saved["state"] | states}
    if isinstance(base, SavedOptimizer):
        # The order has been seen to.
        groups = saved["param_groups"]
        unnamed = [{n: v for n, v in g.items() if n != "param_names"} for g in groups]
        base.load_state_dict(whole | {"param_groups": unnamed})
        return
    last = StateDict()

    def read(given: StateDict) -> StateDict:
        last.update(given)
        return given

    with inside_hooks(base, read=read, finish=lambda: _undo_casts(base, last)):
        base.load_state_dict(whole)


def _undo_casts(base: Optimizer, last: StateDict) -> None:
    """Undo what torch (2.13.0) does to tensors on loading: it casts some, and shares the others."""
    keys = [key for group in last["param_groups"] for key in group["params"]]
    parameters = [p for group in base.param_groups for p in group["params"]]
    by_key = dict(zip(keys, parameters, strict=True))
    if type(base).__module__.partition(".optim")[0] == "torch":
        _fit_states(last["state"], by_key)
    for key, saved in last["state"].items():
        mine = by_key.get(key, key)
        base.state[mine] = _as_saved(base.state[mine], saved)


def _as_saved(loaded: Any, saved: Any) -> Any:
    """Return the loaded value with the saved one's tensors, copied, where the two are alike."""
    if isinstance(loaded, Tensor) and isinstance(saved, Tensor):
        return saved.to(device=loaded.device, copy=True)
    if isinstance(loaded, dict) and isinstance(saved, dict):
        return {n: _as_saved(value, saved.get(n, value)) for n, value in loaded.items()}
    return loaded


def _fit_states(states: Mapping[Any, Any], parameters: Mapping[Any, Tensor]) -> None:
    """Cast the buffers of torch's optimizers to the dtype of steps, in which torch has them.

    It is the parameter's, or float32 for a narrow one. Their steps fail where the two differ.
    Single numbers, as ``step``, have a dtype of their own.
    """
    for key in states.keys() & parameters.keys():
        for name, value in states[key].items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
                states[key][name] = value.to(working_dtype(parameters[key].dtype))


def is_equal(state: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two states have the same names and values."""
    if state.keys() != other.keys():
        return False
    pairs = ((value, other[name]) for name, value in state.items())
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
