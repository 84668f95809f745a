"""No averaging: the parameter itself moves, and is its own average."""

import torch
from torch import Tensor

from roadless.optim.averaging import Counters, Pace, warmed_up
from roadless.optim.backends.form import Move
from roadless.optim.checks import require_at_least_zero, require_steps
from roadless.optim.core.engine import Engine
from roadless.optim.rules.base import Batch, Group, State, TensorList


class Descent(Engine):
    """Plain descent along the direction u of a base rule, with decoupled weight decay::

        p ← p - γ (u + λ p),  γ = lr · min(1, t / warmup_steps)

    ``at_average``, ``averaged_point``, ``eval`` and ``train`` work with x = p, so that evaluation
    code need not know which optimizer it is given.
    """

    def average_into(self, parameter: Tensor, _group: Group, out: Tensor, /) -> None:
        """Write the parameter itself into ``out``."""
        out.copy_(parameter)

    def _training_point_into(self, parameter: Tensor, _group: Group, out: Tensor, /) -> None:
        out.copy_(parameter)

    def _check(self, group: Group) -> None:
        require_at_least_zero(group, "lr", "weight_decay")
        require_steps(group, "warmup_steps")
        super()._check(group)

    def _pace(self, group: Group, counters: Counters) -> tuple[Counters, Pace]:
        t = counters.k + 1
        lr = warmed_up(float(group["lr"]), t, warmup_steps=group["warmup_steps"])
        lr *= self.rule.lr_factor(group, t)
        return Counters(k=t), Pace(t=t, lr=lr, c=0.0)

    def _start(self, point: Tensor, gradient: Tensor, group: Group) -> State:
        return self.rule.start(point, gradient, group)

    def _kernel_move(self, group: Group, pace: Pace) -> Move:
        return Move(lr=pace.lr, decay=group["weight_decay"])

    def _move(self, batch: Batch, us: TensorList) -> None:
        gamma, decay = batch.pace.lr, batch.group["weight_decay"]
        if decay != 0:
            torch._foreach_mul_(batch.points, 1 - gamma * decay)
        torch._foreach_add_(batch.points, us, alpha=-gamma)
