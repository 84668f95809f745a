"""Schedule-free spelled out, with x, y and z all stored: code to read, and the oracle for tests.

Letters follow the paper: z takes the steps, x is the average and the result, y is where gradients
are taken. Slower and twice as large as `roadless.optim.schedule_free.sgd` and
`roadless.optim.schedule_free.adamw`, which must agree.

Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682.
"""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.averaging import Pace
from roadless.optim.checks import require_bool, require_inside_unit_interval
from roadless.optim.core.ages import count_missed, missed_by, note_missed, own_pace
from roadless.optim.core.averaged_optimizer import settings_of
from roadless.optim.core.gradients import gradient_of
from roadless.optim.core.shapes import require_shapes
from roadless.optim.numerics.complex_pairs import with_pairs
from roadless.optim.numerics.precision import working_dtype
from roadless.optim.rules.adam import check_betas, check_inner_momentum, over_root
from roadless.optim.rules.base import Group, State, TensorList
from roadless.optim.rules.radam import rectification, rectified
from roadless.optim.schedule_free.base import ScheduleFreeOptimizer


class _Reference(ScheduleFreeOptimizer):
    """The three sequences around the direction of a base rule."""

    @abstractmethod
    def _direction(self, g: Tensor, state: State, group: Group, t: int, /) -> Tensor:
        """Return u, the base rule's direction for the t-th gradient g at y, t from 1."""

    def _update(self, parameters: TensorList, group: Group, pace: Pace) -> None:
        count_missed(group, self.state, active=parameters)
        for parameter in parameters:
            state = self._state_of(parameter, pace)
            require_shapes(state, parameter, ("x", "y", "z", "exp_avg", "exp_avg_sq"))
            g = gradient_of(parameter, group).to(state["z"].dtype)
            own = own_pace(pace, group, missed=missed_by(state), lr_factor=self._lr_factor)
            u = with_pairs(self._direction, g, state, group, own.age)
            self._move(state, u, group, own)
            parameter.copy_(state["y"])

    def _move(self, state: State, u: Tensor, group: Group, pace: Pace) -> None:
        x, y, z = state["x"], state["y"], state["z"]
        gamma, c, beta = pace.lr, pace.c, self._beta(group)
        decayed = z if group.get("decay_at_z", False) else y

        z = z - gamma * (u + group["weight_decay"] * decayed)
        x = (1 - c) * x + c * z
        y = beta * x + (1 - beta) * z

        state.update(x=x, y=y, z=z)

    def _change_beta(self, parameter: Tensor, _old: float, new: float) -> None:
        state = self.state[parameter]
        state["y"] = new * state["x"] + (1 - new) * state["z"]
        parameter.copy_(state["y"])

    def _state_of(self, parameter: Tensor, pace: Pace) -> State:
        state: State = self.state[parameter]
        if not state:
            state.update(_start(parameter))
            note_missed(state, pace.t - 1)
        return state

    def _initial_state(self, parameter: Tensor, group: Group) -> State:
        state = _start(parameter)
        g = gradient_of(parameter, group).to(state["z"].dtype)
        with_pairs(self._direction, g, state, group, 1)
        note_missed(state, -1)
        return state

    def _knows(self, name: str, group: Group) -> bool:
        return name.startswith("exp_avg") or super()._knows(name, group)

    def _required(self, _group: Group) -> frozenset[str]:
        return frozenset(("x", "y", "z"))

    def average_into(self, parameter: Tensor, _group: Group, out: Tensor, /) -> None:
        """Write x, as it is stored, into ``out``."""
        out.copy_(self.state.get(parameter, {}).get("x", parameter))

    def _training_point_into(self, parameter: Tensor, _group: Group, out: Tensor, /) -> None:
        out.copy_(self.state.get(parameter, {}).get("y", parameter))


def _start(parameter: Tensor) -> State:
    start = parameter.detach().to(working_dtype(parameter.dtype))
    return {name: start.clone() for name in ("x", "y", "z")}


class SGDScheduleFreeReference(_Reference):
    """SGD around x, y, z: equations, arguments and errors of `roadless.optim.SGDScheduleFree`.

    With u = g. ``foreach`` is accepted and has no effect. State per parameter: x, y, z.

    >>> import torch
    >>> from roadless.optim import SGDScheduleFreeReference
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = SGDScheduleFreeReference([w], lr=0.5, momentum=0.9)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> {name: round(optimizer.state[w][name].item(), 6) for name in "xyz"}
    {'x': 2.18125, 'y': 2.2425, 'z': 2.79375}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2,
        foreach: bool | None = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _beta(self, group: Group) -> float:
        return float(group["momentum"])

    def _check(self, group: Group) -> None:
        require_inside_unit_interval("momentum", group["momentum"])
        super()._check(group)

    def _direction(self, g: Tensor, _state: State, _group: Group, _t: int, /) -> Tensor:
        return g


class AdamWScheduleFreeReference(_Reference):
    """AdamW around x, y, z: equations, arguments and errors of `roadless.optim.AdamWScheduleFree`.

    With u = g / (√(v / (1 - β₂ᵗ)) + ε). With ``decay_at_z`` the weight decay is evaluated at z: λ z
    in place of λ y. ``foreach`` is accepted and has no effect. State per parameter: x, y, z, v
    (``exp_avg_sq``) and, with ``inner_momentum``, m (``exp_avg``).

    >>> import torch
    >>> from roadless.optim import AdamWScheduleFreeReference
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = AdamWScheduleFreeReference([w], lr=0.5)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> {name: round(optimizer.state[w][name].item(), 6) for name in "xyz"}
    {'x': 0.945978, 'y': 0.989903, 'z': 1.385234}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2,
        decay_at_z: bool = False,
        foreach: bool | None = False,
        inner_momentum: float = 0.0,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _check(self, group: Group) -> None:
        check_inner_momentum(group)
        require_bool(group, "decay_at_z")
        super()._check(group)

    def _direction(self, g: Tensor, state: State, group: Group, t: int, /) -> Tensor:
        beta2, mu, epsilon = group["betas"][1], group["inner_momentum"], group["eps"]
        v = state.get("exp_avg_sq", torch.zeros_like(g))

        v = beta2 * v + (1 - beta2) * g**2
        m = _mean(g, state, mu, t) if mu else g
        u = over_root(m, v / (1 - beta2**t), epsilon)

        state["exp_avg_sq"] = v
        return u


def _mean(g: Tensor, state: State, mu: float, t: int) -> Tensor:
    m = state.get("exp_avg", torch.zeros_like(g))

    m = mu * m + (1 - mu) * g
    corrected: Tensor = m / (1 - mu**t)

    state["exp_avg"] = m
    return corrected


class RAdamScheduleFreeReference(_Reference):
    """RAdam around x, y, z: equations, arguments and errors of `roadless.optim.RAdamScheduleFree`.

    ``foreach`` is accepted and has no effect. State per parameter: x, y, z and v (``exp_avg_sq``).
    The authors' library has no such form.

    >>> import torch
    >>> from roadless.optim import RAdamScheduleFreeReference
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = RAdamScheduleFreeReference([w], lr=0.5)
    >>> for _ in range(7):
    ...     optimizer.zero_grad()
    ...     ((w - 3) ** 2 / 2).sum().backward()
    ...     optimizer.step()
    >>> {name: round(optimizer.state[w][name].item(), 6) for name in "xyz"}
    {'x': 0.028209, 'y': 0.029171, 'z': 0.037827}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
        silent_sgd_phase: bool = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _check(self, group: Group) -> None:
        check_betas(group)
        require_bool(group, "silent_sgd_phase")
        super()._check(group)

    def _lr_factor(self, group: Group, t: int, /) -> float:
        return rectified(group, t)

    def _direction(self, g: Tensor, state: State, group: Group, t: int, /) -> Tensor:
        beta2, epsilon = group["betas"][1], group["eps"]
        v = state.get("exp_avg_sq", torch.zeros_like(g))

        v = beta2 * v + (1 - beta2) * g**2
        u = over_root(g, v / (1 - beta2**t), epsilon)

        state["exp_avg_sq"] = v
        return g if rectification(beta2, t) is None else u
