"""What all optimizers here share: the frame of a step, the two positions, the state, its saving.

A subclass says how parameters move (`_update`), how fast (`_pace`) and where the averaged point is.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from roadless.optim.averaging import Counters, Pace
from roadless.optim.checks import plain, require_at_least_zero
from roadless.optim.core.ages import note_none_missed
from roadless.optim.core.gradients import with_gradient
from roadless.optim.core.initial_states import POINTS, is_initial
from roadless.optim.core.loading import StateDict, members, require_saved_shape
from roadless.optim.core.saved_optimizer import (
    SavedOptimizer,
    as_tensors,
    on_device_of,
    without_count_below_zero,
)
from roadless.optim.core.torch_options import check_torch_options, taking_torch_options
from roadless.optim.numerics.autocast import outside_autocast
from roadless.optim.numerics.complex_pairs import as_pair, require_plain_complex
from roadless.optim.rules.base import Group, State, TensorList


def settings_of(variables: Mapping[str, Any]) -> Group:
    """Return the settings that a constructor was given, from ``locals()`` at its first line.

    The signature is the list of settings; a second copy could disagree with it.
    """
    others = ("self", "__class__", "params")
    return {name: value for name, value in variables.items() if name not in others}


class AveragedOptimizer(SavedOptimizer):
    """A ``torch.optim.Optimizer`` whose result is x, which may differ from its parameters.

    Each parameter group carries its counters (``k``, ``weight_sum``, ``lr_max``), the learning rate
    of its last step after warmup (``scheduled_lr``, for logs) and its position: ``train_mode`` is
    true while its parameters are where gradients are taken, and false while they hold x. All of
    them are part of ``state_dict()`` and are restored from it. A new optimizer is in the training
    position.

    A parameter's state is created at its first gradient; until then all its points equal the
    parameter, so frozen and late parameters, and groups added at any time, need no special care. A
    late parameter of an existing group shares that group's counters and averaging weights, but the
    bias of its moments is corrected for the gradients that it has had itself
    (`roadless.optim.core.ages`); in a new group it starts with fresh counters.

    Complex parameters move as the pair of their real and imaginary parts does. The options of
    torch.optim are taken where they mean something: `roadless.optim.core.torch_options`.

    ``memory``: what else a group remembers; part of the state too.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = taking_torch_options(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, params: ParamsT, settings: Group, *, memory: Group | None = None) -> None:
        counters = Counters()
        remembered: Group = {
            "k": counters.k,
            "weight_sum": counters.weight_sum,
            "lr_max": counters.lr_max,
            "scheduled_lr": 0.0,
            "train_mode": True,
        }
        super().__init__(params, settings | remembered | (memory or {}))

    @abstractmethod
    def _pace(self, group: Group, counters: Counters) -> tuple[Counters, Pace]:
        """Return the group's counters after this step, and the step's numbers."""

    @abstractmethod
    def _update(self, parameters: TensorList, group: Group, pace: Pace) -> None:
        """Take one step with these parameters of the group, all of which have a gradient."""

    @abstractmethod
    def _check(self, group: Group) -> None:
        """Raise ValueError when a setting of the group is out of range."""

    def _prepare(self, group: Group) -> None:
        """Prepare a group before its gradients are computed or used."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, at any time; settings that it omits are those of the constructor.

        Raises:
            ValueError: a setting is out of range, a parameter is already in a group, or is complex
                in a way that cannot be stepped.
        """
        settings = self.defaults | param_group
        check_torch_options(settings)
        self._check(settings)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # A tensor as lr stays one: a program may change it in place.
        group.update({n: plain(group[n]) for n in self.defaults.keys() - {"lr"}})
        try:
            require_plain_complex(self.param_groups[-1]["params"])
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step from the gradients; they are read, never written.

        Args:
            closure: recomputes the loss and its gradients, and returns the loss.

        Returns:
            The closure's loss, or None without one.

        Raises:
            RuntimeError: the parameters of some group hold x.
            ValueError: a gradient is sparse, or a learning rate was set to what is none.
        """
        if self._is_request_for_state(closure):
            return None
        return self._take_step(closure)

    def _take_step(self, closure: Callable[[], float] | None) -> float | None:
        """Do what `step` says. torch wraps ``step`` in hooks, so no ``step`` may call another."""
        self._require_training_position()
        for group in self.param_groups:
            self._prepare(group)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._move_all()
        return loss

    # Numbers that change in every step are hidden from the compiler, which would recompile for
    # each. This form of ``torch.compiler.disable`` defers its import, as torch's own do. One frame
    # for all of it: entering one takes as long as checking ten tensors.
    @_disable_dynamo
    def _move_all(self) -> None:
        """Take the step with the gradients there are, or refuse it before anything moves."""
        ready = self._ready()
        with outside_autocast():
            for group, parameters in zip(self.param_groups, ready, strict=True):
                self._step_group(group, parameters)

    def _ready(self) -> list[TensorList]:
        """Return by group who has a gradient, or refuse what no step can be taken with."""
        for group in self.param_groups:
            require_at_least_zero(group, "lr")
        return [with_gradient(group["params"]) for group in self.param_groups]

    def _step_group(self, group: Group, parameters: TensorList) -> None:
        before = Counters(k=group["k"], weight_sum=group["weight_sum"], lr_max=group["lr_max"])
        counters, pace = self._pace(group, before)
        self._update(parameters, group, pace)
        group.update(
            k=counters.k,
            weight_sum=counters.weight_sum,
            lr_max=counters.lr_max,
            scheduled_lr=pace.lr,
        )

    @outside_autocast()
    def _initial_states(self) -> dict[Tensor, State]:
        return {
            parameter: self._initial_state(parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        }

    @abstractmethod
    def _initial_state(self, parameter: Tensor, group: Group) -> State:
        """Return all of the state that a parameter has after steps, as it is before the first."""

    def _read(self, saved: StateDict) -> None:
        known = members(saved["param_groups"], self.param_groups)
        for key, state in saved["state"].items():
            parameter, group, name = known[key]
            saved["state"][key] = self._read_state(as_tensors(state), parameter, group, of=name)

    def _read_state(self, state: State, parameter: Tensor, saved: Group, *, of: str) -> State:
        settings = self.defaults | saved
        for name, tensor in state.items():
            if shapes := self._shapes_of(name, parameter, settings):
                require_saved_shape(name, tensor, shapes=shapes, of=of)
        if is_initial(state, num_steps=int(saved["k"])):
            return {}
        return without_count_below_zero(state)

    def _shapes_of(self, name: str, parameter: Tensor, _group: Group) -> Sequence[torch.Size]:
        """Return the shapes that a tensor of the state may have; none if any is right."""
        is_alike = name in POINTS or name == "low" or name.startswith("exp_avg")
        return (parameter.shape, as_pair(parameter).shape) if is_alike else ()

    def _finish(self, saved: StateDict, own_groups: list[Group]) -> None:
        for group, own in zip(self.param_groups, own_groups, strict=True):
            self._complete(group, own)
        # torch casts state to the parameter's dtype and shares tensors that need no cast; both
        # would break the promise of going on bit for bit.
        known = members(saved["param_groups"], self.param_groups)
        for key, (parameter, _, _) in known.items():
            self.state.pop(parameter, None)
            if state := saved["state"].get(key):
                self.state[parameter] = {n: on_device_of(parameter, t) for n, t in state.items()}

    def state_dict(self) -> StateDict:
        """Return the state as torch does, and under ``saved_by`` in its groups whose it is.

        Reading it changes nothing, at any time and in either position.
        """
        if self._counts_missed():
            # In every state, as torch's flattened checkpoint loads only names that are known.
            for state in self.state.values():
                if state:
                    note_none_missed(state)
        return super().state_dict()

    def _counts_missed(self) -> bool:
        """Return whether steps depend on how many gradients a parameter has had."""
        return True

    def _complete(self, group: Group, own: Group) -> None:
        """Add to a loaded group what its file lacks, such as one from another library."""
        for name in own.keys() - group.keys():
            group[name] = own[name]
