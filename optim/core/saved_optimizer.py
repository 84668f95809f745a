"""How a state leaves an optimizer and comes back: by file, by torch's checkpoints, through hooks.

Both families of optimizers (`roadless.optim.core.averaged_optimizer` and the wrappers) save and
load in this frame; they differ in what their state is.
"""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from roadless.optim.core.initial_states import COUNTS, POINTS, InitialStates, is_idle
from roadless.optim.core.lineage import has_other_settings, name_by_settings, refusal
from roadless.optim.core.loading import (
    StateDict,
    cleaned,
    inside_hooks,
    members,
    require_complete,
    require_groups,
    require_known,
    require_order,
    require_some,
)
from roadless.optim.core.points import is_at_average
from roadless.optim.core.positions import Group, TwoPositions

State = dict[str, Any]

#: Under this key the groups of a state dict say whose state it is. Groups in use do not have it: of
#: their settings none may be missing in a flattened checkpoint, and older ones lack this.
_NAMED = "saved_by"


class SavedOptimizer(TwoPositions):
    """An optimizer whose state can be read at any time, and is only loaded where it belongs."""

    #: The group's count of steps, by which a state of this family is known.
    _counter: str = "k"

    def _lineage(self) -> dict[str, Any]:
        """Return whose state this is: ``name``, and ``form``, equal where states mean the same."""
        kin = (one for one in type(self).__mro__ if one.__module__.startswith("roadless.optim."))
        return {"name": type(self).__name__, "form": next(kin).__name__}

    def _is_kin(self, lineage: Mapping[str, Any]) -> bool:
        """Return whether a state with that lineage means the same here."""
        return bool(lineage.get("form") == self._lineage()["form"])

    @abstractmethod
    def _initial_states(self) -> dict[Tensor, State]:
        """Return states for the parameters that have a gradient, as if it were their first."""

    @abstractmethod
    def _required(self, group: Group) -> frozenset[str]:
        """Return names that every state of the group's parameters has."""

    @abstractmethod
    def _read(self, saved: StateDict) -> None:
        """Check the states of a cleaned state dict, and bring them into the form to be loaded."""

    @abstractmethod
    def _finish(self, saved: StateDict, own_groups: list[Group]) -> None:
        """Complete what torch loaded."""

    def _is_request_for_state(self, closure: Callable[[], Any] | None) -> bool:
        """Make states, if that is all that a step is asked for; say whether it was.

        To be called first in every ``step``; a step that is one must not go on.
        """
        self._forget_initial_states()
        if self.state or not is_idle(self.param_groups, closure):
            return False
        self.state = InitialStates(self._initial_states())
        return True

    def _forget_initial_states(self) -> None:
        if isinstance(self.state, InitialStates):
            self.state = defaultdict(dict)

    def state_dict(self) -> StateDict:
        """Return the state as torch does, and under ``saved_by`` in its groups whose it is.

        Reading it changes nothing, at any time and in either position.
        """
        handle = self.register_state_dict_post_hook(_sign, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()
            self._forget_initial_states()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load what ``state_dict()`` returned; it restores settings, counters and position.

        State tensors are copied to their parameter's device and keep their own dtype, so that
        training continues bit for bit. Settings that the file does not have stay as they are. The
        parameters are loaded with the model, and must be from the same step. What a pre-hook
        returns is what is loaded. If the state is refused, nothing has changed.

        Raises:
            ValueError: the state is another optimizer's, of other groups, or of parameters of
                another shape; or a part of it is missing.
            RuntimeError: inside `roadless.optim.at_average`.
        """
        if is_at_average(self):
            raise RuntimeError(
                "load_state_dict(): expected to be outside of at_average(), seen inside"
            )
        own_groups, saved = self.param_groups, StateDict()
        # A hook may bring states into the optimizer's order, and leave the names as they are.
        has_hooks = bool(self._optimizer_load_state_dict_pre_hooks)

        def read(given: StateDict) -> StateDict:
            saved.update(self._checked(given, has_hooks=has_hooks))
            return saved

        try:
            with inside_hooks(self, read=read, finish=lambda: self._finish(saved, own_groups)):
                super().load_state_dict(state_dict)
        finally:
            self._forget_initial_states()
            self._forget_empty_states()

    def _forget_empty_states(self) -> None:
        """Drop what torch (2.13.0) leaves by asking ``state`` for names: it then seems made."""
        for parameter in [p for p, state in self.state.items() if isinstance(state, dict)]:
            if not self.state[parameter]:
                del self.state[parameter]

    def _checked(self, given: StateDict, *, has_hooks: bool) -> StateDict:
        saved = cleaned(given)
        self._require_own(saved, given["state"])
        for group in saved["param_groups"]:
            group.pop(_NAMED, None)
        require_groups(saved["param_groups"], self.param_groups)
        if not has_hooks:
            require_order(saved["param_groups"], self.param_groups)
        known = members(saved["param_groups"], self.param_groups)
        require_known(saved["state"], known)
        num_steps = max((int(g.get(self._counter, 0)) for g in saved["param_groups"]), default=0)
        require_some(saved["state"], num_steps=num_steps)
        for key, state in saved["state"].items():
            parameter, group, name = known[key]
            required = self._required_of(parameter, given["state"][key], state, group)
            require_complete(given["state"][key], state, required, of=name)
        self._read(saved)
        return saved

    def _required_of(
        self, _parameter: Tensor, _given: Mapping[str, Any], _read: State, group: Group
    ) -> frozenset[str]:
        """Return names that may not be empty in a given state, of which ``read`` is what is not."""
        return self._required(self.defaults | group)

    def _require_own(self, saved: StateDict, states: Mapping[Any, Any]) -> None:
        """Refuse the state of another optimizer; ``states`` are as given.

        Raises:
            ValueError: with the names of both.
        """
        name, groups = self._lineage()["name"], saved["param_groups"]
        named = [group[_NAMED] for group in groups if isinstance(group.get(_NAMED), dict)]
        for lineage in named:
            if not self._is_kin(lineage):
                raise refusal(name, str(lineage.get("name")))
        if not named and self._is_foreign(saved["param_groups"], states):
            raise refusal(name, name_by_settings(groups))

    def _is_foreign(self, groups: list[Group], states: Mapping[Any, Any]) -> bool:
        """Return whether a state without a name is another optimizer's, as far as can be told."""
        own = set[str]().union(*self.param_groups)
        return bool(groups) and (
            any(self._counter not in group for group in groups)
            or any(has_other_settings(group, own, self.defaults) for group in groups)
            or any(self._is_of_another(state, groups[0]) for state in states.values())
        )

    def _is_of_another(self, state: Any, group: Group) -> bool:
        if not isinstance(state, dict) or not state:
            return False
        settings = self.defaults | group
        telling = self._required(settings) & {*POINTS, *COUNTS}
        return not telling <= state.keys() or not all(self._knows(n, settings) for n in state)

    def _knows(self, name: str, group: Group) -> bool:
        """Return whether a state may have a tensor of this name."""
        return (
            name in self._required(group)
            or name == "missed"
            or any(name in state for state in self.state.values())
        )


def _sign(optimizer: Any, saved: StateDict) -> None:
    for group in saved["param_groups"]:
        group[_NAMED] = optimizer._lineage()


def on_device_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a copy beside the parameter; a single number stays where steps read it, on the CPU."""
    is_count = tensor.dim() == 0 and not tensor.is_floating_point()
    return tensor.to(device="cpu" if is_count else parameter.device, copy=True)


def without_count_below_zero(state: State) -> State:
    """Return the state without a count that is not its own: see `initial_states`."""
    return {
        name: value
        for name, value in state.items()
        if not (name in COUNTS and isinstance(value, Tensor) and int(value) < 0)
    }


def as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state of tensors alone; plain numbers become tensors too."""
    return {name: torch.as_tensor(value) for name, value in state.items()}
