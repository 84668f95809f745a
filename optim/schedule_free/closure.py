"""Schedule-free for programs that pass a closure: between steps, the parameters hold x.

The other forms hold y between steps. Here y exists only while the closure runs, so that nothing has
to be moved before a model is evaluated or saved.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from roadless.optim.core.points import is_at_average
from roadless.optim.numerics.autocast import outside_autocast
from roadless.optim.numerics.precision import is_narrow
from roadless.optim.rules.base import Group, TensorList
from roadless.optim.schedule_free.adamw import AdamWScheduleFree
from roadless.optim.schedule_free.fast import FastScheduleFree
from roadless.optim.schedule_free.radam import RAdamScheduleFree
from roadless.optim.schedule_free.sgd import SGDScheduleFree


class _ClosureForm(FastScheduleFree):
    """Moves to y for the closure and the step, and back to x.

    Only parameters that take part are moved: one that is frozen, or has had no gradient yet, keeps
    its value bit for bit. The published forms move frozen and late parameters towards the value
    that they had in the first step, and never back.
    """

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, at any time; its parameters hold x, as all others do.

        Raises:
            ValueError: a setting is out of range, or a parameter is already in a group.
        """
        param_group.setdefault("train_mode", False)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float:  # type: ignore[override]
        """Take one step; only the closure sees y.

        Args:
            closure: recomputes the loss and its gradients at y, and returns the loss. It may be
                None if every lr is 0: torch's distributed checkpoint creates states that way.

        Returns:
            The closure's loss.

        Raises:
            ValueError: there is no closure, or a gradient is sparse.
            RuntimeError: inside `roadless.optim.at_average`.
        """
        if self._is_request_for_state(closure):
            return 0.0
        if closure is None and any(float(group["lr"]) for group in self.param_groups):
            raise ValueError("step(): expected a closure, seen None")
        if is_at_average(self):
            raise RuntimeError("step(): expected to be outside of at_average(), seen inside")
        at_y = self._all_to_training_point()
        try:
            return cast(float, self._take_step(closure or _nothing))
        finally:
            self._all_to_average(at_y)

    def train(self) -> None:
        """Do nothing: only the closure sees y. For code that calls it anyway."""

    def _remembers_y(self, parameter: Tensor) -> bool:
        # Rounded x is too coarse to recover y.
        return is_narrow(parameter.dtype)

    @outside_autocast()
    def _all_to_training_point(self) -> set[Tensor]:
        at_y: set[Tensor] = set()
        for group in self.param_groups:
            if group["train_mode"]:
                # Loaded from a form that holds y.
                at_y.update(group["params"])
            else:
                at_y.update(self._group_to_training_point(group))
        return at_y

    def _group_to_training_point(self, group: Group) -> TensorList:
        # y is recomputed: a changed β needs no conversion, which would move resting parameters too.
        group["held_beta"] = self._beta(group)
        moved = [p for p in group["params"] if self.state.get(p) and _may_get_gradient(p)]
        for parameter in moved:
            self._move_to_training_point(parameter, group)
        group["train_mode"] = True
        return moved

    @outside_autocast()
    def _all_to_average(self, at_y: set[Tensor]) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in at_y or parameter.grad is not None:
                    self._back_to_average(parameter, group)
            group["train_mode"] = False

    def _back_to_average(self, parameter: Tensor, group: Group) -> None:
        if self._remembers_y(parameter):
            self._move_to_average(parameter, group)
        else:
            self.average_into(parameter, group, parameter)


class SGDScheduleFreeClosure(_ClosureForm, SGDScheduleFree):
    """`SGDScheduleFree`, whose parameters hold x between steps; ``step`` requires a closure.

    Equations and arguments are those of `SGDScheduleFree`; the published order is kept, in which
    ``weight_decay`` comes before ``momentum``. ``eval`` and ``train`` need not be called, and
    `roadless.optim.averaged_point` returns the parameters as they are. State per parameter: z.

    Raises:
        ValueError: a setting is out of range.

    Example: the minimum of (w - 3)²/2, from 0.

    >>> import torch
    >>> from roadless.optim import SGDScheduleFreeClosure
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = SGDScheduleFreeClosure([w], lr=0.5, momentum=0.9)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = ((w - 3) ** 2 / 2).sum()
    ...     loss.backward()
    ...     return loss.item()
    >>> [round(optimizer.step(closure), 6) for _ in range(3)]
    [4.5, 1.125, 0.591328]
    >>> round(w.item(), 6)
    2.18125

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, equations 2 to 4.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0,
        momentum: float = 0.9,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            foreach=foreach,
        )


class AdamWScheduleFreeClosure(_ClosureForm, AdamWScheduleFree):
    """`AdamWScheduleFree`, whose parameters hold x between steps; ``step`` requires a closure.

    Equations, arguments and errors are those of `AdamWScheduleFree`. ``eval`` and ``train`` need
    not be called, and `roadless.optim.averaged_point` returns the parameters as they are. State per
    parameter: z and v (``exp_avg_sq``).

    Example: the minimum of (w - 3)²/2, from 0.

    >>> import torch
    >>> from roadless.optim import AdamWScheduleFreeClosure
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = AdamWScheduleFreeClosure([w], lr=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = ((w - 3) ** 2 / 2).sum()
    ...     loss.backward()
    ...     return loss.item()
    >>> losses = [optimizer.step(closure) for _ in range(3)]
    >>> round(w.item(), 6)
    0.945978

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, algorithm 1.
    """


class RAdamScheduleFreeClosure(_ClosureForm, RAdamScheduleFree):
    """`RAdamScheduleFree`, whose parameters hold x between steps; ``step`` requires a closure.

    Equations, arguments and errors are those of `RAdamScheduleFree`. ``eval`` and ``train`` need
    not be called, and `roadless.optim.averaged_point` returns the parameters as they are. State per
    parameter: z and v (``exp_avg_sq``).

    Example: the minimum of (w - 3)²/2, from 0; with ``silent_sgd_phase``, the first steps only
    measure v.

    >>> import torch
    >>> from roadless.optim import RAdamScheduleFreeClosure
    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = RAdamScheduleFreeClosure([w], lr=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = ((w - 3) ** 2 / 2).sum()
    ...     loss.backward()
    ...     return loss.item()
    >>> [round(optimizer.step(closure), 6) for _ in range(6)]
    [4.5, 4.5, 4.5, 4.5, 4.5, 4.47407]
    >>> round(w.item(), 6)
    0.017541

    Source: Liu et al. 2020, arXiv 1908.03265, algorithm 2, inside Defazio et al. 2024, "The Road
    Less Scheduled", arXiv 2405.15682, algorithm 1.
    """


def _nothing() -> float:
    return 0.0


def _may_get_gradient(parameter: Tensor) -> bool:
    return parameter.requires_grad or parameter.grad is not None
