"""The frame of the wrappers: groups shared with a base, the order of a step, one state to save.

The base keeps its own state, to which we add nothing; the groups are shared, so that schedulers
reach both. `roadless.optim.schedule_free.wrapper` defines what is done with x, y and z.
"""

import inspect
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from roadless.optim.averaging import Counters, advance
from roadless.optim.checks import require_at_least_zero, require_inside_unit_interval
from roadless.optim.core.descent import Descent
from roadless.optim.core.positions import Group, TwoPositions

State = dict[str, Any]
Member = tuple[Tensor, Group]

#: Prefix of the base's names in a saved state.
_BASE = "base."


class AveragedBase(TwoPositions):
    """An optimizer around a base optimizer, which steps z.

    A group keeps, beside the base's settings: ``train_mode``; ``sf_momentum`` (β),
    ``weight_decay_at_y``, ``sf_r`` and ``sf_weight_lr_power``, which may be set per group; the
    counters ``sf_k``, ``sf_weight_sum``, ``sf_lr_max``; and ``sf_held_momentum``, the β that the
    current y was made with, so that x is unchanged when ``sf_momentum`` is changed.
    """

    def __init__(self, base: Optimizer, settings: Group) -> None:
        _require_wrappable(base)
        self.base = base
        counters = Counters()
        memory = {
            "train_mode": True,
            "sf_held_momentum": settings["sf_momentum"],
            "sf_k": counters.k,
            "sf_weight_sum": counters.weight_sum,
            "sf_lr_max": counters.lr_max,
        }
        super().__init__(base.param_groups, base.defaults | settings | memory)

    @abstractmethod
    def _begin(self, y: Tensor, state: State, group: Group) -> None:
        """Remember what is needed of y, and set the parameter to z, decayed at y."""

    @abstractmethod
    def _finish(self, z: Tensor, state: State, group: Group, c: float) -> None:
        """Take the base's new z from the parameter, average, and set it to y."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a group to the base and to the averaging, at any time.

        Raises:
            ValueError: a setting is out of range, or a parameter is already in a group.
        """
        _check(self.defaults | param_group)
        if not any(param_group is known for known in self.base.param_groups):
            self.base.add_param_group(param_group)
        super().add_param_group(self.base.param_groups[len(self.param_groups)])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Let the base take one step at z, from the gradients at y; then average.

        If the base raises, x, y and z remain consistent.

        Args:
            closure: recomputes the loss and its gradients at y, and returns the loss.

        Returns:
            The closure's loss, or None without one.

        Raises:
            RuntimeError: the parameters of some group hold x.
        """
        self._require_training_position()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Listed first: some bases drop the gradients in their step.
        members = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
        self._step_base(members)
        return loss

    def _step_base(self, members: list[Member]) -> None:
        for group in self.param_groups:
            self._convert(group)
        for parameter, group in members:
            self._begin(parameter, self._state_of(parameter), group)
        shares = [0.0] * len(self.param_groups)
        try:
            self.base.step()
            # After the step, as the base may estimate its own learning rate there.
            shares = [_advance(group) for group in self.param_groups]
        finally:
            c_of = {id(g): c for g, c in zip(self.param_groups, shares, strict=True)}
            for parameter, group in members:
                self._finish(parameter, self.state[parameter], group, c_of[id(group)])

    def _convert(self, group: Group) -> None:
        """Move the group's y from the β it was made with to the current β; x is unchanged."""
        if group["sf_held_momentum"] != group["sf_momentum"]:
            for parameter in group["params"]:
                self.average_into(parameter, group, parameter)
            group["sf_held_momentum"] = group["sf_momentum"]
            for parameter in group["params"]:
                self._training_point_into(parameter, group, parameter)

    @abstractmethod
    def _state_of(self, parameter: Tensor) -> State:
        """Return the averaging state of a parameter that has a gradient, new if it is the first."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything: averaging, position, and the base's state under ``base.`` names."""
        own = self.state
        self.state = self._whole_state()
        try:
            return super().state_dict()
        finally:
            self.state = own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned, into the averaging and into the base.

        State tensors keep their own dtype, so that training continues bit for bit. The parameters
        are loaded with the model, and must be from the same step.

        Raises:
            ValueError: groups or their sizes differ.
        """
        super().load_state_dict(state_dict)
        own, bases = _split(state_dict["state"])
        self.base.load_state_dict(state_dict | {"state": bases})
        # The base has created its own dicts for the groups; share them again.
        self.param_groups = list(self.base.param_groups)
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.state = defaultdict(dict)
        for i, parameter in zip(saved_ids, parameters, strict=True):
            if i in own:
                self.state[parameter] = _on_device(own[i], parameter)
            if i in bases:
                _restore(self.base.state[parameter], bases[i])

    def _whole_state(self) -> defaultdict[Tensor, State]:
        whole: defaultdict[Tensor, State] = defaultdict(dict)
        for parameter, values in self.state.items():
            whole[parameter] = dict(values)
        for parameter, values in self.base.state.items():
            whole[parameter].update({_BASE + name: value for name, value in values.items()})
        return whole

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"base": self.base}


def _check(settings: Mapping[str, Any]) -> None:
    named = {
        "momentum": settings["sf_momentum"],
        "weight_decay_at_y": settings["weight_decay_at_y"],
        "r": settings["sf_r"],
        "weight_lr_power": settings["sf_weight_lr_power"],
    }
    require_inside_unit_interval("momentum", named["momentum"])
    require_at_least_zero(named, "weight_decay_at_y", "r", "weight_lr_power")


def _require_wrappable(base: Optimizer) -> None:
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"base: expected a step() without closure, seen {type(base).__name__}")
    for group in base.param_groups:
        if "train_mode" in group and not isinstance(base, Descent):
            raise ValueError(f"base: expected no averaging of its own, seen {type(base).__name__}")
        if "lr" not in group:
            raise ValueError(f"base: expected lr in every group, seen {type(base).__name__}")


def _advance(group: Group) -> float:
    """Advance the group's counters by one step and return its c."""
    counters, pace = advance(
        Counters(k=group["sf_k"], weight_sum=group["sf_weight_sum"], lr_max=group["sf_lr_max"]),
        lr=float(group["lr"]) * float(group.get("d", 1.0)),
        warmup_steps=0,
        r=group["sf_r"],
        weight_lr_power=group["sf_weight_lr_power"],
    )
    group.update(sf_k=counters.k, sf_weight_sum=counters.weight_sum, sf_lr_max=counters.lr_max)
    return pace.c


def _split(saved: Mapping[Any, State]) -> tuple[dict[Any, State], dict[Any, State]]:
    """Split the state of each parameter into ours and the base's, without the prefix."""
    own: dict[Any, State] = {}
    bases: dict[Any, State] = {}
    for i, values in saved.items():
        for name, value in values.items():
            if name.startswith(_BASE):
                bases.setdefault(i, {})[name.removeprefix(_BASE)] = value
            else:
                own.setdefault(i, {})[name] = value
    return own, bases


def _on_device(values: State, parameter: Tensor) -> State:
    return {name: z.to(device=parameter.device, copy=True) for name, z in values.items()}


def _restore(loaded: State, saved: State) -> None:
    """Undo what torch does to tensors on loading: it casts some, and shares the others."""
    for name, value in saved.items():
        if isinstance(value, Tensor) and isinstance(loaded[name], Tensor):
            loaded[name] = value.to(device=loaded[name].device, copy=True)
