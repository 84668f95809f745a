"""The frame of the wrappers: groups shared with a base, the order of a step, one state to save.

The base keeps its own state, to which we add nothing; the groups are shared, so that schedulers
reach both. `roadless.optim.schedule_free.wrapper` defines what is done with x, y and z.
"""

import inspect
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from roadless.optim.averaging import Counters, advance
from roadless.optim.checks import require_at_least_zero, require_inside_unit_interval
from roadless.optim.core.descent import Descent
from roadless.optim.core.initial_states import POINTS, InitialStates, is_unmoved
from roadless.optim.core.loading import StateDict, members, require_saved_shape
from roadless.optim.core.positions import Group
from roadless.optim.core.saved_optimizer import SavedOptimizer, State, on_device_of
from roadless.optim.core.shapes import refuse_gradient, require_shapes
from roadless.optim.core.torch_options import leaving_torch_options
from roadless.optim.numerics.autocast import outside_autocast
from roadless.optim.numerics.precision import is_narrow, keep_low_part, working_dtype
from roadless.optim.numerics.rounding import rounding_key, stochastically_round_into
from roadless.optim.schedule_free.base_state import (
    BASE,
    form_of,
    globals_in,
    is_equal,
    load_base,
    prefixed,
    split,
)
from roadless.optim.schedule_free.idle_step import initial_states_of, is_emptied
from roadless.optim.schedule_free.wide_base import stepping, widen_state

Member = tuple[Tensor, Group]


class AveragedBase(SavedOptimizer):
    """An optimizer around a base optimizer, which steps z.

    A group keeps, beside the base's settings: ``train_mode``; ``sf_momentum`` (β),
    ``weight_decay_at_y``, ``sf_r`` and ``sf_weight_lr_power``, which may be set per group; the
    counters ``sf_k``, ``sf_weight_sum``, ``sf_lr_max``; and ``sf_held_momentum``, the β that the
    current y was made with, so that x is unchanged when ``sf_momentum`` is changed.

    The base's tensors are listed in ``state`` under ``base.`` names; they remain the base's.

    Of a narrow parameter the base steps z itself, which is float32, as its own state is then
    (`roadless.optim.schedule_free.wide_base`).
    """

    _counter = "sf_k"
    #: Names that every state of the averaging has.
    _points: ClassVar[frozenset[str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = leaving_torch_options(cls.__init__)  # type: ignore[method-assign]

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
        self._share_globals(globals_in({"state": base.state}))

    @abstractmethod
    def _begin(self, parameter: Tensor, state: State, group: Group) -> None:
        """Remember what is needed of y, and set to z, decayed at y, what the base steps.

        That is the parameter, or ``state["z"]`` if it is narrow.
        """

    @abstractmethod
    def _average(self, parameter: Tensor, state: State, group: Group, c: float) -> Tensor:
        """Take the base's new z from where it stepped, average, and return y."""

    @abstractmethod
    def _change_beta(self, parameter: Tensor, old: float, new: float) -> None:
        """Move y, which the parameter holds, so that x is unchanged when β goes from old to new."""

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
        if self._is_request_for_state(closure):
            return None
        self._require_training_position()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Listed first: some bases drop the gradients in their step.
        members = [(p, g) for g in self.param_groups for p in g["params"] if p.grad is not None]
        self._step_base(members)
        return loss

    @outside_autocast()
    def _step_base(self, members: list[Member]) -> None:
        for group in self.param_groups:
            require_at_least_zero(group, "lr")
        for group in self.param_groups:
            self._convert(group)
        # All of them before the first moves: halfway between, a parameter holds neither y nor x.
        for parameter, _ in members:
            self._require_fitting(parameter)
        for parameter, group in members:
            self._begin(parameter, self.state[parameter], group)
        shares = [0.0] * len(self.param_groups)
        narrow = {p: self.state[p]["z"] for p, _ in members if is_narrow(p.dtype)}
        strange = _made_usual([parameter for parameter, _ in members if parameter not in narrow])
        try:
            with stepping(self.base, narrow):
                self._step_dense_or_say_so(members)
            # After the step, as the base may estimate its own learning rate there.
            shares = [_advance(group) for group in self.param_groups]
        finally:
            for parameter, gradient in strange.items():
                if parameter.grad is not None:
                    parameter.grad = gradient
            self._average_all(members, shares)
            self._share_states(members)

    def _require_fitting(self, parameter: Tensor) -> None:
        """Refuse a parameter that its state or its gradient does not fit."""
        require_shapes(self._state_of(parameter), parameter, (*POINTS, "low"))
        if parameter.grad is not None and parameter.grad.numel() != parameter.numel():
            refuse_gradient(parameter.grad, parameter)

    def _average_all(self, members: list[Member], shares: list[float]) -> None:
        """Average with each group's c, and move the parameters to y."""
        c_of = {id(g): c for g, c in zip(self.param_groups, shares, strict=True)}
        is_any_narrow = any(is_narrow(p.dtype) for p, _ in members)
        numbers = {p: i for i, p in enumerate(self._all_parameters())} if is_any_narrow else {}
        for parameter, group in members:
            state = self.state[parameter]
            y = self._average(parameter, state, group, c_of[id(group)])
            if is_narrow(parameter.dtype) and "low" in state:
                key = rounding_key(seed=0, step=group["sf_k"], parameter=numbers[parameter])
                _round_into(parameter, y, state, key=key)
            else:
                parameter.copy_(y)

    def _step_dense_or_say_so(self, members: list[Member]) -> None:
        try:
            self.base.step()
        except RuntimeError as error:
            if any(p.grad is not None and p.grad.is_sparse for p, _ in members):
                raise ValueError(
                    f"expected dense gradients, as {type(self.base).__name__} takes no other, seen "
                    "a sparse one; make embeddings with sparse=False"
                ) from error
            raise

    def _convert(self, group: Group) -> None:
        """Move the group's y from the β it was made with to the current β; x is unchanged."""
        old, new = group["sf_held_momentum"], group["sf_momentum"]
        if old != new:
            for parameter in group["params"]:
                if "z" in self.state.get(parameter, {}):
                    self._change_beta(parameter, old, new)
            group["sf_held_momentum"] = new

    @abstractmethod
    def _start(self, parameter: Tensor) -> State:
        """Return the averaging state of a parameter that has its first gradient."""

    @abstractmethod
    def _state_of(self, parameter: Tensor) -> State:
        """Return the averaging state of a parameter that has a gradient, new if it is the first."""

    def _initial_states(self) -> dict[Tensor, State]:
        if _has_own_form(self.base):
            self._share_globals(globals_in(self.base.state_dict()))
        narrow = [p for p in self._all_parameters() if p.grad is not None and is_narrow(p.dtype)]
        for parameter in narrow:
            widen_state(self.base, parameter)
        with stepping(self.base, {p: p.detach().float() for p in narrow}) as others:
            bases = initial_states_of(self.base)
        return {
            p: self._initial_state(p, group) | prefixed(bases.get(others.get(p, p), {}))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        }

    def _initial_state(self, parameter: Tensor, _group: Group) -> State:
        return self._start(parameter)

    def _lineage(self) -> dict[str, Any]:
        own = super()._lineage()
        name, form = type(self.base).__name__, form_of(self.base)
        return {"name": f"{own['name']}({name})", "form": f"{own['form']}({form})"}

    def _share_states(self, members: list[Member]) -> None:
        """List the base's tensors in the states of these parameters; they stay the base's.

        torch's distributed checkpoint (2.13.0) loads from a flattened state what it finds listed
        in ``state``, and drops the rest in silence.
        """
        for parameter, _ in members:
            state = self.state[parameter]
            for name in [name for name in state if name.startswith(BASE)]:
                del state[name]
            state.update(prefixed(self.base.state.get(parameter, {})))
        if not _has_own_form(self.base):
            self._share_globals(globals_in({"state": self.base.state}))

    def _share_globals(self, values: State) -> None:
        """List in the first group what the base keeps beside the states of parameters.

        A distributed checkpoint has no other place for it.
        """
        first = self.param_groups[0]
        for name in [name for name in first if name.startswith(BASE)]:
            del first[name]
        first.update(values)

    def state_dict(self) -> StateDict:
        """Return everything: averaging, position, and the base's state under ``base.`` names.

        What the base keeps beside the states of parameters is under such names in the first group.
        Reading the state changes nothing, at any time and in either position.
        """
        saved = self.base.state_dict()
        self._share_globals(globals_in(saved))
        own = self.state
        self.state = self._joined(saved["state"])
        try:
            return super().state_dict()
        finally:
            self.state = own
            self._forget_initial_states()

    def _joined(self, bases: Mapping[Any, Any]) -> defaultdict[Tensor, State]:
        """Return a state for saving; ``bases`` are the base's, by the parameter's number."""
        joined: defaultdict[Tensor, State] = defaultdict(dict)
        is_initial = isinstance(self.state, InitialStates)
        for number, parameter in enumerate(self._all_parameters()):
            state = dict(self.state[parameter]) if parameter in self.state else {}
            if not is_initial:
                state = split(state)[0]
            if state := state | prefixed(bases.get(number, {})):
                joined[parameter] = state
        return joined

    def _required(self, _group: Group) -> frozenset[str]:
        return self._points

    def _required_of(
        self, parameter: Tensor, given: Mapping[str, Any], read: State, group: Group
    ) -> frozenset[str]:
        own, base = split(read)
        if not own and is_equal(base, self._made_by_base(parameter)):
            return frozenset()
        of_base = frozenset(name for name in given if name.startswith(BASE))
        if isinstance(self.base, SavedOptimizer):
            needed = self.base._required_of(parameter, given, read, group)
            of_base &= prefixed(dict.fromkeys(needed)).keys()
        return of_base | super()._required_of(parameter, given, read, group)

    def _made_by_base(self, parameter: Tensor) -> State:
        """Return the state that a base makes when it is made, as Adagrad does, and needs."""
        if "z" in self.state.get(parameter, {}):
            return {}
        return dict(self.base.state.get(parameter, {}))

    def _is_of_another(self, state: Any, _group: Group) -> bool:
        own = split(state)[0] if isinstance(state, dict) else {}
        return bool(own) and not self._points <= own.keys() <= {*POINTS, "low"}

    def _read(self, saved: StateDict) -> None:
        self._require_globals(saved["param_groups"][0])
        known = members(saved["param_groups"], self.param_groups)
        for key, state in saved["state"].items():
            parameter, group, name = known[key]
            own, base = split(state)
            own = {name: own[name] for name in own.keys() & self._kept_points(group)}
            for point in own.keys() & {*POINTS, "low"}:
                require_saved_shape(point, own[point], shapes=(parameter.shape,), of=name)
            if _is_initial(own, base, parameter, group) or not (own or base):
                own, base = {}, self._made_by_base(parameter)
            saved["state"][key] = own | prefixed(base)

    def _kept_points(self, saved: Group) -> frozenset[str]:
        """Return the points that are kept of a saved state; at y, the parameter is y itself."""
        return self._points | {"low"} | (frozenset() if saved.get("train_mode", True) else {"y"})

    def _require_globals(self, saved: Group) -> None:
        names = globals_in({"state": self.base.state}).keys()
        if missing := sorted(names - saved.keys()):
            raise ValueError(
                f"state_dict: expected {', '.join(missing)} in its first group, as "
                f"{type(self.base).__name__} keeps it beside the states of parameters, seen none"
            )

    def _finish(self, saved: StateDict, own_groups: list[Group]) -> None:
        parts = {key: split(state) for key, state in saved["state"].items()}
        groups = [dict(group) for group in saved["param_groups"]]
        # What a base of ours lacks, it completes itself.
        of_base = self.base.defaults.keys() if isinstance(self.base, SavedOptimizer) else set[str]()
        for group, own in zip(groups, own_groups, strict=True):
            kept = {n: own[n] for n in own.keys() - group.keys() - of_base - {"params"}}
            group.update({n: v for n, v in kept.items() if not n.startswith(BASE)})
        globals_ = {n: groups[0].pop(n) for n in list(groups[0]) if n.startswith(BASE)}
        bases = {key: base for key, (_, base) in parts.items() if base}
        load_base(self.base, {"state": bases, "param_groups": groups}, globals_)
        # The base has created its own dicts for the groups; share them again.
        self.param_groups = list(self.base.param_groups)
        self.state = defaultdict(dict)
        for key, (parameter, _, _) in members(groups, self.param_groups).items():
            if own := parts.get(key, ({}, {}))[0]:
                self.state[parameter] = _fitted(own, parameter)
        of_state = [(p, g) for g in self.param_groups for p in g["params"] if p in self.state]
        self._share_states(of_state)
        self._share_globals(globals_)

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


def _has_own_form(base: Optimizer) -> bool:
    """Return whether the base saves its state in a way of its own."""
    return type(base).state_dict is not Optimizer.state_dict and not isinstance(
        base, SavedOptimizer
    )


def _fitted(own: State, parameter: Tensor) -> State:
    """Return a copy beside the parameter, with points in the dtype of steps; y is a parameter's."""
    dtype = working_dtype(parameter.dtype)
    points = {name: own[name].to(dtype) for name in ("x", "z") if name in own}
    return {name: on_device_of(parameter, tensor) for name, tensor in (own | points).items()}


def _is_initial(own: State, base: State, parameter: Tensor, group: Group) -> bool:
    """Return whether a saved state is one of a parameter that has had no gradient."""
    if not own or not is_emptied(base):
        return False
    return int(group["sf_k"]) == 0 or (bool(base) and is_unmoved(own, parameter))


def _made_usual(parameters: list[Tensor]) -> dict[Tensor, Tensor]:
    """Give a base gradients as it knows them; return those that were there instead.

    torch's own (2.13.0) read no lazily conjugated gradient, and none of another dtype than the
    parameter's, which a parameter may have since 2.10 (``grad_dtype``).
    """
    strange: dict[Tensor, Tensor] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and (gradient.is_conj() or gradient.dtype != parameter.dtype):
            strange[parameter] = gradient
            parameter.grad = gradient.resolve_conj().to(parameter.dtype)
    return strange


def _round_into(parameter: Tensor, y: Tensor, state: State, *, key: int) -> None:
    """Round at random, so that gradients are right on average, and keep what rounding took."""
    stochastically_round_into(parameter, y, key=key)
    keep_low_part(y, parameter, state)


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
