"""Schedule-free without storing x: y in the live parameter, z beside it, and nothing more.

An engine (`roadless.optim.core.engine`) around any rule; the averaging is written once, below.
Equations are spelled out in `roadless.optim.schedule_free.reference`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from roadless.optim.averaging import Pace
from roadless.optim.backends.form import Move
from roadless.optim.core.engine import Engine
from roadless.optim.core.shapes import require_shapes
from roadless.optim.numerics.precision import is_narrow, keep_low_part, wide, working_dtype
from roadless.optim.numerics.sharding import local
from roadless.optim.rules.base import Batch, Group, State, TensorList
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer


class FastScheduleFree(Engine, ScheduleFreeOptimizer):
    """Schedule-free averaging around the direction of a base rule, x recovered on demand.

    With u the rule's direction at y, λ the weight decay and γ, c from `roadless.optim.averaging`::

        z ← z - γ (u + λ y)
        y ← (1 - c) (y - (1-β) γ (u + λ y)) + c z
        x = (y - (1-β) z) / β

    State per parameter: z and the rule's buffers; for a narrow parameter also ``low``, what
    rounding took from y, because x has y's errors divided by β, and nothing in the loss corrects
    them. While a parameter holds x, its y is kept in the state too.
    """

    keeps_low_part: ClassVar[bool] = True
    point_names: ClassVar[tuple[str, ...]] = ("z",)

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _lr_factor(self, group: Group, t: int, /) -> float:
        return self.rule.lr_factor(group, t)

    def _check(self, group: Group) -> None:
        Engine._check(self, group)
        ScheduleFreeOptimizer._check(self, group)

    def _start(self, point: Tensor, gradient: Tensor, group: Group) -> State:
        z = point.clone(memory_format=torch.preserve_format)
        return {"z": z} | self.rule.start(point, gradient, group)

    def _initial_state(self, parameter: Tensor, group: Group) -> State:
        state = super()._initial_state(parameter, group)
        if not group["train_mode"] and self._remembers_y(parameter):
            state["y"] = parameter.detach().clone()
        return state

    def _is_kin(self, lineage: Mapping[str, Any]) -> bool:
        # The form spelled out has x as well, which follows from y and z.
        own = self._lineage()["form"]
        return lineage.get("form") in (own, f"{own}Reference")

    def _knows(self, name: str, group: Group) -> bool:
        return name in ("x", "y") or super()._knows(name, group)

    def _read_state(self, state: State, parameter: Tensor, saved: Group, *, of: str) -> State:
        if saved.get("decay_at_z", False) and "decay_at_z" not in self.defaults:
            raise ValueError(
                f"state_dict: expected decay_at_z=False, as {type(self).__name__} decays at y, "
                "seen True"
            )
        dropped = ("x", "y") if saved.get("train_mode", True) else ("x",)
        kept = {name: tensor for name, tensor in state.items() if name not in dropped}
        return super()._read_state(kept, parameter, saved, of=of)

    def _remembers_y(self, _parameter: Tensor) -> bool:
        """Return whether y is in the state of a parameter that holds x."""
        return True

    def _kernel_move(self, group: Group, pace: Pace) -> Move:
        lr_y = (1 - self._beta(group)) * pace.lr
        return Move(lr=pace.lr, decay=group["weight_decay"], lr_y=lr_y, c=pace.c)

    def _move(self, batch: Batch, us: TensorList) -> None:
        """Move z and y by the step, then y towards the new z; no temporary is made.

        The two updates of the class docstring, ordered so that both decays see the old y.
        """
        ys, zs = batch.points, batch.buffers("z")
        gamma, decay = batch.pace.lr, batch.group["weight_decay"]
        y_step = (1 - self._beta(batch.group)) * gamma
        if decay != 0:
            torch._foreach_add_(zs, ys, alpha=-gamma * decay)
            torch._foreach_mul_(ys, 1 - y_step * decay)
        torch._foreach_add_(zs, us, alpha=-gamma)
        torch._foreach_add_(ys, us, alpha=-y_step)
        torch._foreach_lerp_(ys, zs, batch.pace.c)

    def _change_beta(self, parameter: Tensor, old: float, new: float) -> None:
        """y ← z + (new / old) (y - z), which leaves x where it is."""
        state = self.state[parameter]
        _place(parameter, state, _towards_z(wide(parameter, state), state, 1 - new / old))

    def average_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        """Write x = (y - (1-β) z) / β into ``out``; a parameter that holds x is copied."""
        state = self.state.get(parameter, {})
        if "z" not in state or not group["train_mode"]:
            out.copy_(parameter)
        else:
            weight = 1 - 1 / group["held_beta"]
            _towards_z(wide(parameter, state), state, weight, out=out)

    def _training_point_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        state = self.state.get(parameter, {})
        if "z" not in state:
            out.copy_(parameter)
        else:
            _towards_z(_widened(parameter), state, 1 - group["held_beta"], out=out)

    def remember_training_point(self, parameter: Tensor, y: Tensor, /) -> None:
        """Keep y in the state of a parameter that is about to hold x."""
        if "z" in self.state.get(parameter, {}):
            self.state[parameter]["y"] = y

    def forget_training_point(self, parameter: Tensor, /) -> None:
        """Drop what `remember_training_point` kept."""
        self.state.get(parameter, {}).pop("y", None)

    def _move_to_average(self, parameter: Tensor, group: Group) -> None:
        self.remember_training_point(parameter, parameter.clone())
        super()._move_to_average(parameter, group)

    def _move_to_training_point(self, parameter: Tensor, group: Group) -> None:
        """Put the remembered y back if the parameter still holds its x; else compute a new one."""
        state = self.state.get(parameter, {})
        if "z" not in state:
            return
        require_shapes(state, parameter, ("y", "z"))
        y = state.pop("y", None)
        if y is not None and self._is_average_of(y, parameter, group):
            parameter.copy_(y)
        else:
            to_z = 1 - group["held_beta"]
            _place(parameter, state, _towards_z(_widened(parameter), state, to_z))

    def _is_average_of(self, y: Tensor, x: Tensor, group: Group) -> bool:
        state = self.state[x]
        expected = torch.empty_like(x)
        _towards_z(wide(y, state), state, 1 - 1 / group["held_beta"], out=expected)
        return torch.equal(local(x), local(expected))


def _towards_z(point: Tensor, state: State, weight: float, *, out: Tensor | None = None) -> Tensor:
    """Return point + weight (z - point), in ``out`` if there is one, whatever its dtype."""
    require_shapes(state, point, ("z",))
    z = state["z"].to(point)
    if out is None or (out.dtype == point.dtype and out.device == point.device):
        return torch.lerp(point, z, weight, out=out)
    return out.copy_(torch.lerp(point, z, weight))


def _place(parameter: Tensor, state: State, y: Tensor) -> None:
    """Set the parameter to y, rounded to nearest, and keep what rounding took."""
    parameter.copy_(y)
    if "low" in state and is_narrow(parameter.dtype):
        keep_low_part(y, parameter, state)


def _widened(parameter: Tensor) -> Tensor:
    return parameter.to(working_dtype(parameter.dtype))
