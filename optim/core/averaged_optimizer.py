"""What all optimizers here share: the frame of a step, the two positions, the state, its saving.

A subclass says how parameters move (`_update`), how fast (`_pace`) and where the averaged point is.
"""

from abc import abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any, overload

import torch
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from roadless.optim.averaging import Counters, Pace
from roadless.optim.core.positions import TwoPositions
from roadless.optim.rules.base import Group, TensorList


class AveragedOptimizer(TwoPositions):
    """A ``torch.optim.Optimizer`` whose result is x, which may differ from its parameters.

    Each parameter group carries its counters (``k``, ``weight_sum``, ``lr_max``), the learning rate
    of its last step after warmup (``scheduled_lr``, for logs) and its position: ``train_mode`` is
    true while its parameters are where gradients are taken, and false while they hold x. All of
    them are part of ``state_dict()`` and are restored from it. A new optimizer is in the training
    position.

    A parameter's state is created at its first gradient; until then all its points equal the
    parameter, so frozen and late parameters, and groups added at any time, need no special care. A
    late parameter of an existing group shares that group's counters; in a new group it starts with
    fresh ones.

    ``memory``: what else a group remembers; part of the state too.
    """

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
            ValueError: a setting is out of range, or a parameter is already in a group.
        """
        self._check(self.defaults | param_group)
        super().add_param_group(param_group)

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
            ValueError: a gradient is sparse.
        """
        self._require_training_position()
        for group in self.param_groups:
            self._prepare(group)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    # Numbers that change in every step are hidden from the compiler, which would recompile for
    # each. This form of ``torch.compiler.disable`` defers its import, as torch's own do.
    @_disable_dynamo
    def _step_group(self, group: Group) -> None:
        before = Counters(k=group["k"], weight_sum=group["weight_sum"], lr_max=group["lr_max"])
        counters, pace = self._pace(group, before)
        self._update(_with_gradient(group["params"]), group, pace)
        group.update(
            k=counters.k,
            weight_sum=counters.weight_sum,
            lr_max=counters.lr_max,
            scheduled_lr=pace.lr,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned; it restores settings, counters and position.

        State tensors are copied to their parameter's device and keep their own dtype, so that
        training continues bit for bit. Settings that the file does not have stay as they are. The
        parameters are loaded with the model, and must be from the same step.

        Raises:
            ValueError: groups or their sizes differ.
        """
        own_groups = self.param_groups
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, own_groups, strict=True):
            self._complete(group, own)
        # torch casts state to the parameter's dtype and shares tensors that need no cast; both
        # would break the promise above.
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, parameter in zip(saved_ids, parameters, strict=True):
            if saved_id in state_dict["state"]:
                self.state[parameter] = {
                    name: tensor.to(device=parameter.device, copy=True)
                    for name, tensor in state_dict["state"][saved_id].items()
                }

    def _complete(self, group: Group, own: Group) -> None:
        """Add to a loaded group what its file lacks, such as one from another library."""
        for name in own.keys() - group.keys():
            group[name] = own[name]


def _with_gradient(parameters: TensorList) -> TensorList:
    active = [parameter for parameter in parameters if parameter.grad is not None]
    if any(parameter.grad.is_sparse for parameter in active if parameter.grad is not None):
        raise ValueError("expected dense gradients, seen a sparse one; use sparse=False")
    return active
