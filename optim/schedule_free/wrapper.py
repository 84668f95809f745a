"""Schedule-free averaging around any torch optimizer: the base steps z, gradients are taken at y.

The forms with the averaging built in (`roadless.optim.schedule_free.sgd`,
`roadless.optim.schedule_free.adamw`, ...) are faster; this one wraps everything else, including
optimizers not written yet.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from roadless.optim.core.positions import Group
from roadless.optim.core.saved_optimizer import State
from roadless.optim.numerics.precision import (
    is_narrow,
    keep_low_part,
    low_of,
    wide,
    working_dtype,
)
from roadless.optim.numerics.sharding import local
from roadless.optim.schedule_free.wide_base import widen_state
from roadless.optim.schedule_free.wrapped_base import AveragedBase


class ScheduleFreeWrapper(AveragedBase):
    """Any torch optimizer, made schedule-free; x, the result, is good at every step.

    With B one step of the base from z with the gradient at y, λ = ``weight_decay_at_y``,
    β = ``momentum``, γ the group's ``lr`` (times its ``d``, where the base keeps one, as Prodigy
    does), and c as in `roadless.optim.averaging.advance`::

        z ← B(z - lr λ y)
        x ← (1 - c) x + c z
        y ← (1 - β) z + β x

    The parameters hold y, where gradients are taken. Read x with `roadless.optim.averaged_point`,
    or put it into the parameters temporarily with `roadless.optim.at_average`. The base's own
    momentum may be turned off, as β takes its place. State per parameter: z, beside the base's own;
    in a step one temporary as large as the largest parameter. Narrow parameters (bfloat16, float16)
    have a float32 z, 16 bits more of y (``low``), and a base that steps in float32, with its state
    and, in a step, a copy of the gradients.

    Args:
        base: any optimizer whose ``step`` needs no closure, with ``lr`` in its groups. From now on
            the wrapper owns it: step, save and add groups through the wrapper.
        weight_decay_at_y: λ, >= 0, multiplied by lr; the base's own decay acts at z instead.
        momentum: β, > 0 and < 1; closer to 1 for long runs.
        weight_lr_power: power of the largest learning rate so far in the averaging weight, >= 0.
        r: power of the step in that weight, >= 0; 0 weighs all steps alike.

    Raises:
        ValueError: a setting is out of range, or the base cannot be wrapped.

    Example: the minimum of (w - 3)²/2, from 0, under RMSprop.

    >>> import torch
    >>> from roadless.optim import ScheduleFreeWrapper, averaged_point
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = ScheduleFreeWrapper(torch.optim.RMSprop([w], lr=0.1), momentum=0.9)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> round(optimizer.state[w]["z"].item(), 6), round(w.item(), 6)
    (1.984802, 1.56091)
    >>> round(averaged_point(optimizer)[w].item(), 6)
    1.513811

    Unlike the published wrapper, this one is a ``torch.optim.Optimizer``, works with bases that
    keep a state (Adam, RMSprop, ...) or a counter ``k`` (Prodigy), takes a learning rate of 0, and
    saves all it needs.

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, algorithm 1 with any
    base step.
    """

    def __init__(
        self,
        base: Optimizer,
        weight_decay_at_y: float = 0.0,
        momentum: float = 0.9,
        weight_lr_power: float = 2,
        r: float = 0,
    ) -> None:
        super().__init__(base, _settings(momentum, weight_decay_at_y, r, weight_lr_power))

    def average_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        """Write x = (y - (1-β) z) / β into ``out``; a parameter that holds x is copied."""
        out.copy_(self._average_of(parameter, group) if group["train_mode"] else parameter)

    def _training_point_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        x, z = wide(parameter, {}), self._z_of(parameter)
        out.copy_(torch.lerp(x, z, 1 - group["sf_held_momentum"]))

    def remember_training_point(self, parameter: Tensor, y: Tensor, /) -> None:
        """Keep y in the state, so that `train` restores it bit for bit."""
        if "z" in self.state.get(parameter, {}):
            self.state[parameter]["y"] = y

    def forget_training_point(self, parameter: Tensor, /) -> None:
        """Drop what `remember_training_point` kept."""
        self.state.get(parameter, {}).pop("y", None)

    def _move_to_average(self, parameter: Tensor, group: Group) -> None:
        self.remember_training_point(parameter, parameter.detach().clone())
        super()._move_to_average(parameter, group)

    def _move_to_training_point(self, parameter: Tensor, group: Group) -> None:
        """Put the remembered y back if the parameter still holds its x; else compute a new one."""
        state = self.state.get(parameter, {})
        y = state.pop("y", None)
        if y is not None and self._is_average_of(y, parameter, group):
            parameter.copy_(y)
        elif "z" in state:
            x, z = wide(parameter, {}), self._z_of(parameter)
            _place(parameter, state, torch.lerp(x, z, 1 - group["sf_held_momentum"]))

    def _is_average_of(self, y: Tensor, x: Tensor, group: Group) -> bool:
        state, z = self.state[x], self._z_of(x)
        found = torch.lerp(wide(y, state), z, 1 - 1 / group["sf_held_momentum"])
        return torch.equal(local(found.to(x.dtype)), local(x))

    def _average_of(self, parameter: Tensor, group: Group) -> Tensor:
        y, z = wide(parameter, self.state.get(parameter, {})), self._z_of(parameter)
        return torch.lerp(y, z, 1 - 1 / group["sf_held_momentum"])

    def _z_of(self, parameter: Tensor) -> Tensor:
        z: Tensor = self.state.get(parameter, {}).get("z", parameter)
        return z.to(device=parameter.device, dtype=working_dtype(parameter.dtype))

    def _change_beta(self, parameter: Tensor, old: float, new: float) -> None:
        """y ← z + (new / old) (y - z), which leaves x where it is."""
        state = self.state[parameter]
        y = wide(parameter, state)
        _place(parameter, state, torch.lerp(y, self._z_of(parameter), 1 - new / old))

    _points = frozenset({"z"})

    def _is_kin(self, lineage: Mapping[str, Any]) -> bool:
        # The form spelled out has x as well, which follows from y and z.
        own = self._lineage()["form"]
        return lineage.get("form") in (own, own.replace("Wrapper(", "WrapperReference(", 1))

    def _start(self, parameter: Tensor) -> State:
        start = {"z": _widened_copy(parameter)}
        if is_narrow(parameter.dtype):
            low_of(parameter, start)
        return start

    def _initial_state(self, parameter: Tensor, group: Group) -> State:
        # Held at x, a parameter has its y in the state.
        kept = {} if group["train_mode"] else {"y": parameter.detach().clone()}
        return self._start(parameter) | kept

    def _state_of(self, parameter: Tensor) -> State:
        state: State = self.state[parameter]
        if "z" not in state:
            state.update(self._start(parameter))
            widen_state(self.base, parameter)
        elif is_narrow(state["z"].dtype):
            widen_state(self.base, parameter)
        # Contents are swapped with the parameter's, so z has its device, and its dtype or float32.
        state["z"] = self._z_of(parameter)
        return state

    def _begin(self, parameter: Tensor, state: State, group: Group) -> None:
        """Put x where z was and z where y was; of a narrow parameter, x where y was."""
        x, y, z = self._average_of(parameter, group), wide(parameter, state), state["z"]
        decayed = torch.sub(z, y, alpha=_decay(group)) if group["weight_decay_at_y"] else z
        if is_narrow(parameter.dtype):
            z.copy_(decayed)
            parameter.copy_(x)
            keep_low_part(x, parameter, state)
        else:
            parameter.copy_(decayed)
            z.copy_(x)

    def _average(self, parameter: Tensor, state: State, group: Group, c: float) -> Tensor:
        if is_narrow(parameter.dtype):
            x, z = wide(parameter, state), state["z"]
        else:
            x, z = state["z"], parameter
        x = torch.lerp(x, z, c)
        if z is parameter:
            state["z"].copy_(z)
        return x.lerp_(z, 1 - group["sf_held_momentum"])


class ScheduleFreeWrapperReference(AveragedBase):
    """The wrapper spelled out, with x, y and z all stored: equations of `ScheduleFreeWrapper`.

    The arguments mean the same, but are in the published order. A parameter without a gradient
    rests, as in all optimizers here; the published reference averages it anyway.

    >>> import torch
    >>> from roadless.optim import ScheduleFreeWrapperReference
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = ScheduleFreeWrapperReference(torch.optim.RMSprop([w], lr=0.1), momentum=0.9)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> {name: round(optimizer.state[w][name].item(), 6) for name in "xyz"}
    {'x': 1.513811, 'y': 1.56091, 'z': 1.984802}

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, algorithm 1.
    """

    def __init__(
        self,
        base: Optimizer,
        momentum: float = 0.9,
        weight_decay_at_y: float = 0.0,
        r: float = 0,
        weight_lr_power: float = 2,
    ) -> None:
        super().__init__(base, _settings(momentum, weight_decay_at_y, r, weight_lr_power))

    def average_into(self, parameter: Tensor, _group: Group, out: Tensor, /) -> None:
        """Write x, as it is stored, into ``out``."""
        out.copy_(self.state.get(parameter, {}).get("x", parameter))

    def _training_point_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        state = self.state.get(parameter, {})
        if "x" in state:
            state["y"] = _between(state["x"], state["z"], group["sf_held_momentum"])
            out.copy_(state["y"])
        else:
            out.copy_(parameter)

    _points = frozenset({"x", "y", "z"})

    def _start(self, parameter: Tensor) -> State:
        return {name: _widened_copy(parameter) for name in ("x", "y", "z")}

    def _state_of(self, parameter: Tensor) -> State:
        state: State = self.state[parameter]
        if "x" not in state:
            state.update(self._start(parameter))
            widen_state(self.base, parameter)
        elif is_narrow(state["z"].dtype):
            state.update({name: state[name].float() for name in ("x", "y", "z")})
            widen_state(self.base, parameter)
        return state

    def _change_beta(self, parameter: Tensor, _old: float, new: float) -> None:
        state = self.state[parameter]
        state["y"] = _between(state["x"], state["z"], new)
        parameter.copy_(state["y"])

    def _begin(self, parameter: Tensor, state: State, group: Group) -> None:
        z = state["z"] - _decay(group) * state["y"]
        (state["z"] if is_narrow(parameter.dtype) else parameter).copy_(z)

    def _average(self, parameter: Tensor, state: State, group: Group, c: float) -> Tensor:
        z = state["z"] if is_narrow(parameter.dtype) else parameter.detach().clone()
        x = (1 - c) * state["x"] + c * z
        state.update(x=x, y=_between(x, z, group["sf_held_momentum"]), z=z)
        y: Tensor = state["y"]
        return y


def _settings(momentum: float, weight_decay_at_y: float, r: float, weight_lr_power: float) -> Group:
    return {
        "sf_momentum": momentum,
        "weight_decay_at_y": weight_decay_at_y,
        "sf_r": r,
        "sf_weight_lr_power": weight_lr_power,
    }


def _decay(group: Group) -> float:
    return float(group["lr"]) * float(group["weight_decay_at_y"])


def _between(x: Tensor, z: Tensor, beta: float) -> Tensor:
    return beta * x + (1 - beta) * z


def _widened_copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to(working_dtype(parameter.dtype), copy=True)


def _place(parameter: Tensor, state: State, y: Tensor) -> None:
    """Set the parameter to y, rounded to nearest, and keep what rounding took."""
    parameter.copy_(y)
    if is_narrow(parameter.dtype):
        keep_low_part(y, parameter, state)
