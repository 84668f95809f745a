"""The two positions of the live parameters: y, where gradients are taken, and x, the average.

Each group records in ``train_mode`` which of the two its parameters hold, so that the position is
part of the state and is checked per group. `roadless.optim.core.points` has the forms without such
a mode.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from roadless.optim.numerics.autocast import outside_autocast

#: A parameter group of torch: its parameters, settings and counters.
Group = dict[str, Any]


class TwoPositions(Optimizer, ABC):
    """A ``torch.optim.Optimizer`` whose groups carry ``train_mode``: true at y, false at x."""

    @abstractmethod
    def average_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        """Write the averaged point x of ``parameter``, a member of ``group``, into ``out``.

        ``out`` has the parameter's shape and may have another dtype or device, or be the parameter.
        """

    @abstractmethod
    def _training_point_into(self, parameter: Tensor, group: Group, out: Tensor, /) -> None:
        """Write y into ``out``, for a parameter that holds x."""

    @torch.no_grad()
    @outside_autocast()
    def eval(self) -> None:
        """Move all parameters to x. For code written for other libraries; see `at_average`.

        A second call has no effect. Returning with `train` is exact if y is remembered, and rounds
        otherwise; leaving `at_average` is always exact.
        """
        for group in self.param_groups:
            if group["train_mode"]:
                for parameter in group["params"]:
                    self._move_to_average(parameter, group)
                group["train_mode"] = False

    @torch.no_grad()
    @outside_autocast()
    def train(self) -> None:
        """Move all parameters to y, where steps are taken; a second call has no effect.

        A parameter that was changed while it held x gets the y that matches its new value.
        """
        for group in self.param_groups:
            if not group["train_mode"]:
                for parameter in group["params"]:
                    self._move_to_training_point(parameter, group)
                group["train_mode"] = True

    def remember_training_point(self, parameter: Tensor, y: Tensor, /) -> None:
        """Keep y, which the parameter holds before it is given x, for `train` and for the state.

        By default nothing is kept, and `train` computes y from x.
        """

    def forget_training_point(self, parameter: Tensor, /) -> None:
        """Drop what `remember_training_point` kept, because the parameter holds y again."""

    def _move_to_average(self, parameter: Tensor, group: Group) -> None:
        self.average_into(parameter, group, parameter)

    def _move_to_training_point(self, parameter: Tensor, group: Group) -> None:
        self._training_point_into(parameter, group, parameter)

    def _all_parameters(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _require_training_position(self) -> None:
        away = [i for i, group in enumerate(self.param_groups) if not group["train_mode"]]
        if away:
            raise RuntimeError(
                f"step(): expected all parameters at the training point y, but those of group(s) "
                f"{away} hold the averaged point x; leave at_average() or call train() first"
            )
