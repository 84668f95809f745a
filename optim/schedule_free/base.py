"""What all schedule-free optimizers share: changes of β, the pace, the way back from x to y.

Nothing here knows whether x is stored (`roadless.optim.schedule_free.reference`) or not
(`roadless.optim.schedule_free.fast`).
"""

from abc import abstractmethod

from torch import Tensor

from roadless.optim.averaging import Counters, Pace, advance
from roadless.optim.checks import require_at_least_zero, require_steps
from roadless.optim.core.averaged_optimizer import AveragedOptimizer
from roadless.optim.numerics.autocast import outside_autocast
from roadless.optim.rules.base import Group as Group
from roadless.optim.rules.base import TensorList as TensorList

_SETTINGS = ("lr", "weight_decay", "r", "weight_lr_power")


class ScheduleFreeOptimizer(AveragedOptimizer):
    """An optimizer whose parameters hold y in training and whose result is the average x.

    With β the interpolation, y = (1 - β) z + β x. A group remembers in ``held_beta`` the β that its
    current y was made with: when β is changed, in the group or in a loaded state, the next step
    first moves y to where the new β puts it, and x is unchanged.
    """

    @abstractmethod
    def _beta(self, group: Group) -> float:
        """Return β as it is set: how far y is from z (0) towards x (1)."""

    @abstractmethod
    def _change_beta(self, parameter: Tensor, old: float, new: float) -> None:
        """Move y, which the parameter holds, so that x is unchanged when β goes from old to new."""

    def _lr_factor(self, _group: Group, _t: int, /) -> float:
        return 1.0

    def _check(self, group: Group) -> None:
        require_at_least_zero(group, *_SETTINGS)
        require_steps({"warmup_steps": 0} | group, "warmup_steps")

    def _pace(self, group: Group, counters: Counters) -> tuple[Counters, Pace]:
        return advance(
            counters,
            lr=float(group["lr"]),
            warmup_steps=group.get("warmup_steps", 0),
            r=group["r"],
            weight_lr_power=group["weight_lr_power"],
            lr_factor=self._lr_factor(group, counters.k + 1),
        )

    def _prepare(self, group: Group) -> None:
        beta, held = self._beta(group), group["held_beta"]
        if beta != held:
            self._check(group)
            with outside_autocast():
                for parameter in group["params"]:
                    if self.state.get(parameter):
                        self._change_beta(parameter, held, beta)
            group["held_beta"] = beta

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, at any time; what it leaves out is set as in the constructor.

        Raises:
            ValueError: a setting is out of range, or a parameter is already in a group.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("held_beta", self._beta(group))

    def _complete(self, group: Group, own: Group) -> None:
        # In a state of the authors' library, y was made with the β that it comes with.
        group.setdefault("held_beta", self._beta(own | group))
        super()._complete(group, own)
