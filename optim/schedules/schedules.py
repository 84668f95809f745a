"""Learning-rate schedules as arrays: warmup, a main part that each class defines, cooldown.

`optim/theory/bounds.py` bounds the loss under them and `optim/planning.py` chooses among them;
numpy only.

A job of T steps has T + 1 rates here, of which the last, often 0, is never used:
``WSDSchedule(final_lr=0.0, steps=T + 1, cooldown_len=0.2, base_lr=lr).schedule[:T]``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from roadless.optim.checks import require_above_zero, require_at_least_zero
from roadless.optim.schedules.parts import Cooldown, DecayType, End, Warmup, read_part
from roadless.optim.theory.bounds import Kind, bounds_at, optimal_base, split_bound
from roadless.optim.theory.rows import (
    Floats,
    Horizons,
    checked_horizons,
    checked_norms,
    require_whole_number,
)


class ScheduleBase(ABC):
    """A fixed number of learning rates: base_lr times warmup, main part, cooldown.

    A new schedule is a subclass with a ``name``, ``main_has_horizon`` and `main_part`.

    Args:
        steps: number of rates, >= 1; one more than the steps of the job.
        base_lr: what a rate of 1 means, >= 0.
        warmup_kwargs: ``steps`` (>= 0), ``warmup_lr`` (the first rate, by default 1e-10) and
            ``warmup_lr_absolute`` (whether that is a rate rather than a share of base_lr).
        cooldown_kwargs: ``steps`` (>= 0), ``type`` ("linear" or "sqrt", which is 1 - sqrt),
            ``final_lr`` (the last rate, by default 1e-10) and ``final_lr_absolute``.

    If warmup and cooldown together take all the steps, the cooldown, or else the warmup, gives up
    one for the main part.

    Raises:
        ValueError: an argument is out of range, or the parts do not fit.
    """

    name: ClassVar[str]
    #: Whether the main part changes when the schedule gets longer.
    main_has_horizon: ClassVar[bool]
    #: The rate of the main part where `main_part` is 0.
    _main_end: End = End("final_lr", 0.0, is_absolute=False)

    def __init__(
        self,
        steps: int,
        base_lr: float = 1.0,
        warmup_kwargs: Mapping[str, Any] | None = None,
        cooldown_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._steps = require_whole_number("steps", steps, least=1)
        self._warmup = read_part("warmup_kwargs", Warmup, warmup_kwargs)
        self._cooldown = read_part("cooldown_kwargs", Cooldown, cooldown_kwargs)
        self.warmup_steps, self.cooldown_steps = self._fitted_lengths()
        self.set_base_lr(base_lr)

    @abstractmethod
    def main_part(self, num_steps: int) -> Floats:
        """Return the ``num_steps`` (>= 1) rates between warmup and cooldown, at base rate 1."""

    @property
    def schedule(self) -> Floats:
        """The rates: a new array of float64, as long as the schedule."""
        return self._base_lr * self._shape

    @property
    def shape(self) -> Floats:
        """The rates at base rate 1: a new array.

        Raises:
            ValueError: an end is absolute, so that the rates do not scale with the base rate.
        """
        if any(end.is_absolute for end in self._ends):
            raise ValueError(
                "schedule: expected ends that are relative to the base rate, seen an absolute one"
            )
        return self._shape.copy()

    @property
    def has_horizon(self) -> bool:
        """Whether a longer one begins differently; if not, a run can simply continue."""
        return self.main_has_horizon or self.cooldown_steps > 0

    @property
    def cooldown_start(self) -> int:
        """The last step before the cooldown, counted from 1."""
        return self._steps - self.cooldown_steps

    def get_base_lr(self) -> float:
        """Return the base rate."""
        return self._base_lr

    def set_base_lr(self, base_lr: float) -> None:
        """Set the base rate; absolute ends stay where they are.

        Raises:
            ValueError: negative or not finite, or an absolute end is above it.
        """
        require_at_least_zero({"base_lr": base_lr}, "base_lr")
        shape = self._constructed(float(base_lr))
        self._base_lr, self._shape = float(base_lr), shape

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self._steps}, base_lr={self._base_lr:g})"

    def compute_rate(
        self,
        grad_norms: ArrayLike,
        D: float,
        T: Horizons,
        type: Kind = "refined",
        return_split: bool = False,
    ) -> Any:
        """Bound the loss after T steps, by `roadless.optim.theory.bounds.split_bound`.

        Args:
            grad_norms: G_t, >= 0; one for all steps or one per rate.
            D: distance from start to optimum, > 0.
            T: one horizon in 1..len(self), or several.
            type: "refined" for the last iterate, "standard" for the best or average one.
            return_split: whether to return the three terms rather than their sum.

        Returns:
            A float or (t1, t2, t3); for several horizons, an array or three of them.

        Raises:
            ValueError: bad input; or the rate at T is 0, so that there is no bound.
        """
        rates, norms = self.schedule, checked_norms(grad_norms, num_steps=self._steps)
        horizons = checked_horizons(T, num_steps=self._steps, name="T")
        if not return_split:
            bounds = bounds_at(rates, norms, D=D, kind=type, horizons=np.atleast_1d(horizons))
            return bounds if horizons.ndim else float(bounds[0])
        split = [split_bound(rates[:n], norms[:n], D=D, kind=type) for n in np.ravel(horizons)]
        terms = [(one.t1, one.t2, one.t3) for one in split]
        return tuple(np.array(terms).T) if horizons.ndim else terms[0]

    def compute_optimal_base(
        self, G: ArrayLike, D: float, T: SupportsIndex, type: Kind = "refined"
    ) -> tuple[float, float]:
        """Return the base rate with the smallest bound after T steps, and that bound.

        Arguments and errors are those of `compute_rate`; absolute ends are also refused.
        """
        norms = checked_norms(G, num_steps=self._steps)
        n = require_whole_number("T", T, least=1)
        if n > self._steps:
            raise ValueError(f"T: expected at most the {self._steps} rates, seen {n}")
        return optimal_base(self.shape[:n], norms[:n], D=D, kind=type)

    def plot(self, ax: Any = None) -> Any:
        """Draw the rates over the steps and return the axes.

        Args:
            ax: matplotlib axes to draw on; None makes new ones.

        Raises:
            ImportError: new axes are needed and matplotlib is not installed.
        """
        axes = _new_axes() if ax is None else ax
        axes.plot(np.arange(1, self._steps + 1), self.schedule, label=self.name)
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate")
        axes.set_ylim(bottom=0)
        return axes

    @property
    def _ends(self) -> list[End]:
        """The ends of the parts that exist."""
        ends = [self._main_end]
        ends += [self._warmup.first] if self.warmup_steps else []
        return ends + ([self._cooldown.final] if self.cooldown_steps else [])

    def _fitted_lengths(self) -> tuple[int, int]:
        """Return the steps of warmup and cooldown, less one where the main part would have none."""
        warmup, cooldown = self._warmup.steps, self._cooldown.steps
        if warmup + cooldown > self._steps:
            raise ValueError(
                f"warmup and cooldown: expected at most {self._steps} steps together, "
                f"seen {warmup} + {cooldown}"
            )
        if warmup + cooldown < self._steps:
            return warmup, cooldown
        return (warmup, cooldown - 1) if cooldown else (warmup - 1, cooldown)

    def _constructed(self, base_lr: float) -> Floats:
        """Return all rates relative to the base rate."""
        end = self._main_end.over(base_lr)
        unit = self.main_part(self._steps - self.warmup_steps - self.cooldown_steps)
        main = end + (1 - end) * unit
        return np.concatenate((self._rise(base_lr), main, self._fall(base_lr, float(main[-1]))))

    def _rise(self, base_lr: float) -> Floats:
        if not self.warmup_steps:
            return np.empty(0)
        return self._warmup.rates(self.warmup_steps, first=self._warmup.first.over(base_lr))

    def _fall(self, base_lr: float, last: float) -> Floats:
        if not self.cooldown_steps:
            return np.empty(0)
        final = self._cooldown.final.over(base_lr)
        return self._cooldown.rates(self.cooldown_steps, last=last, final=final)


class WSDSchedule(ScheduleBase):
    """Warmup, stable, decay: constant until the cooldown.

    Args:
        final_lr: the last rate, a share of base_lr in [0, 1], or a rate.
        steps: number of rates, >= 1.
        base_lr: the constant rate, >= 0.
        cooldown_len: share of the steps in the cooldown, in [0, 1]; rounded to whole steps.
        decay_type: shape of the cooldown, "linear" or "sqrt" (1 - sqrt).
        final_lr_absolute: whether final_lr is a rate.
        warmup_kwargs: see `ScheduleBase`.

    >>> WSDSchedule(steps=6, cooldown_len=0.5, base_lr=0.3).schedule.round(3)
    array([0.3, 0.3, 0.3, 0.2, 0.1, 0. ])
    """

    name = "wsd"
    main_has_horizon = False

    def __init__(
        self,
        final_lr: float = 0.0,
        steps: int = 100,
        base_lr: float = 1.0,
        cooldown_len: float = 0.2,
        decay_type: DecayType = "linear",
        final_lr_absolute: bool = False,
        warmup_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        cooldown = _cooldown_of(cooldown_len, steps, decay_type, final_lr, final_lr_absolute)
        super().__init__(steps, base_lr, warmup_kwargs, cooldown)

    def main_part(self, num_steps: int) -> Floats:
        """Return ones."""
        return np.ones(num_steps)


class ConstantSchedule(WSDSchedule):
    """One rate, after an optional warmup.

    Args:
        steps: number of rates, >= 1.
        base_lr: the rate, >= 0.
        warmup_kwargs: see `ScheduleBase`.
    """

    name = "constant"

    def __init__(
        self,
        steps: int = 100,
        base_lr: float = 1.0,
        warmup_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            steps=steps, base_lr=base_lr, cooldown_len=0.0, warmup_kwargs=warmup_kwargs
        )


class LinearSchedule(WSDSchedule):
    """Linear decay from the first step: a cooldown of all the steps.

    Args:
        final_lr: the last rate, a share of base_lr in [0, 1].
        steps: number of rates, >= 1.
        base_lr: the first rate, >= 0.

    >>> LinearSchedule(steps=5).schedule
    array([1.  , 0.75, 0.5 , 0.25, 0.  ])
    """

    name = "linear"
    _decay_type: ClassVar[DecayType] = "linear"

    def __init__(self, final_lr: float = 0.0, steps: int = 100, base_lr: float = 1.0) -> None:
        super().__init__(final_lr, steps, base_lr, cooldown_len=1.0, decay_type=self._decay_type)


class OneMinusSqrtSchedule(LinearSchedule):
    """Decay by 1 - sqrt(t/T) from the first step; arguments are those of `LinearSchedule`."""

    name = "one-minus-sqrt"
    _decay_type = "sqrt"


class CosineSchedule(ScheduleBase):
    """Half a cosine from the base rate to the final rate.

    Args:
        final_lr: the last rate, a share of base_lr in [0, 1], or a rate.
        steps: number of rates, >= 1.
        base_lr: the rate after the warmup, >= 0.
        final_lr_absolute: whether final_lr is a rate.
        warmup_kwargs: see `ScheduleBase`.

    >>> CosineSchedule(final_lr=0.1, steps=3).schedule
    array([1.  , 0.55, 0.1 ])
    """

    name = "cosine"
    main_has_horizon = True

    def __init__(
        self,
        final_lr: float = 0.0,
        steps: int = 100,
        base_lr: float = 1.0,
        final_lr_absolute: bool = False,
        warmup_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._main_end = End("final_lr", final_lr, is_absolute=final_lr_absolute)
        super().__init__(steps, base_lr, warmup_kwargs)

    def main_part(self, num_steps: int) -> Floats:
        """Return (1 + cos(pi i / (n - 1))) / 2 as a square, so that the tail keeps its digits."""
        return np.asarray(np.sin(np.pi / 2 * _countdown(num_steps)) ** 2)


class PolynomialBackwardSchedule(ScheduleBase):
    """((T - t) / (T - 1))^alpha of the way from the final to the base rate.

    Args:
        steps: number of rates, >= 1.
        base_lr: the rate after the warmup, >= 0.
        alpha: power, > 0; 1 is linear decay.
        final_lr: the last rate, a share of base_lr in [0, 1].
        warmup_kwargs: see `ScheduleBase`; t and T count the steps after it.
    """

    name = "polynomial-backward"
    main_has_horizon = True

    def __init__(
        self,
        steps: int = 100,
        base_lr: float = 1.0,
        alpha: float = 1.0,
        final_lr: float = 0.0,
        warmup_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        require_above_zero({"alpha": alpha}, "alpha")
        self._alpha = float(alpha)
        self._main_end = End("final_lr", final_lr, is_absolute=False)
        super().__init__(steps, base_lr, warmup_kwargs)

    def main_part(self, num_steps: int) -> Floats:
        """Return the power of the remaining share."""
        return np.asarray(_countdown(num_steps) ** self._alpha)


class PolynomialCooldownSchedule(ScheduleBase):
    """1 / t^alpha, then a cooldown.

    Args:
        alpha: power, > 0.
        final_lr: the last rate of the cooldown, a share of base_lr in [0, 1], or a rate.
        steps: number of rates, >= 1.
        base_lr: the rate after the warmup, >= 0.
        cooldown_len: share of the steps in the cooldown, in [0, 1]; rounded to whole steps.
        decay_type: shape of the cooldown, "linear" or "sqrt".
        final_lr_absolute: whether final_lr is a rate.
        warmup_kwargs: see `ScheduleBase`; t counts the steps after it.
    """

    name = "polynomial-cooldown"
    main_has_horizon = False

    def __init__(
        self,
        alpha: float = 1.0,
        final_lr: float = 0.0,
        steps: int = 100,
        base_lr: float = 1.0,
        cooldown_len: float = 0.0,
        decay_type: DecayType = "linear",
        final_lr_absolute: bool = False,
        warmup_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        require_above_zero({"alpha": alpha}, "alpha")
        self._alpha = float(alpha)
        cooldown = _cooldown_of(cooldown_len, steps, decay_type, final_lr, final_lr_absolute)
        super().__init__(steps, base_lr, warmup_kwargs, cooldown)

    def main_part(self, num_steps: int) -> Floats:
        """Return the powers of 1 / t."""
        return np.asarray(1 / np.arange(1, num_steps + 1, dtype=np.float64) ** self._alpha)


class SqrtSchedule(PolynomialCooldownSchedule):
    """1 / sqrt(t), then a cooldown; arguments are those of `PolynomialCooldownSchedule`."""

    name = "sqrt"

    def __init__(
        self,
        final_lr: float = 0.0,
        steps: int = 100,
        base_lr: float = 1.0,
        cooldown_len: float = 0.0,
        decay_type: DecayType = "linear",
        final_lr_absolute: bool = False,
        warmup_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            0.5,
            final_lr,
            steps,
            base_lr,
            cooldown_len,
            decay_type,
            final_lr_absolute,
            warmup_kwargs,
        )


class PiecewiseConstantSchedule(ScheduleBase):
    """A rate that is multiplied by a factor at each milestone.

    Args:
        steps: number of rates, >= 1.
        base_lr: the rate before the first milestone, >= 0.
        milestones: steps after which the factors take effect, >= 1, increasing.
        factors: one per milestone, > 0 and finite.
        cooldown_kwargs: see `ScheduleBase`; it covers the last steps, as the warmup the first ones,
            and moves no milestone.
        warmup_kwargs: see `ScheduleBase`.

    >>> PiecewiseConstantSchedule(steps=5, milestones=[2, 4], factors=[0.5, 0.1]).schedule
    array([1.  , 1.  , 0.5 , 0.5 , 0.05])
    """

    name = "piecewise-constant"
    main_has_horizon = False

    def __init__(
        self,
        steps: int,
        base_lr: float = 1.0,
        milestones: Sequence[int] = (),
        factors: Sequence[float] = (),
        cooldown_kwargs: Mapping[str, Any] | None = None,
        warmup_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._milestones = [require_whole_number("milestones", m, least=1) for m in milestones]
        if any(b <= a for a, b in pairwise(self._milestones)):
            raise ValueError(f"milestones: expected rising steps, seen {list(milestones)}")
        if len(factors) != len(milestones):
            raise ValueError(
                f"factors: expected {len(milestones)}, as milestones, seen {len(factors)}"
            )
        for factor in factors:
            require_above_zero({"factors": factor}, "factors")
        self._products = np.cumprod([1.0, *factors])
        super().__init__(steps, base_lr, warmup_kwargs, cooldown_kwargs)

    def main_part(self, num_steps: int) -> Floats:
        """Return the product of the factors so far."""
        steps = np.arange(self.warmup_steps, self.warmup_steps + num_steps)
        return np.asarray(self._products[np.searchsorted(self._milestones, steps, side="right")])


#: Every schedule by its name.
SCHEDULES: Mapping[str, type[ScheduleBase]] = MappingProxyType(
    {
        schedule.name: schedule
        for schedule in (
            ConstantSchedule,
            CosineSchedule,
            LinearSchedule,
            OneMinusSqrtSchedule,
            PiecewiseConstantSchedule,
            PolynomialBackwardSchedule,
            PolynomialCooldownSchedule,
            SqrtSchedule,
            WSDSchedule,
        )
    }
)


def compute_optimal_base(
    schedule: ScheduleBase, G: ArrayLike, D: float, T: SupportsIndex, type: Kind = "refined"
) -> tuple[float, float]:
    """Return the base rate with the smallest bound after T steps, and that bound.

    The schedule is only read; arguments and errors are those of `ScheduleBase.compute_rate`.

    >>> gamma, omega = compute_optimal_base(LinearSchedule(steps=401), G=1.0, D=1.0, T=400)
    >>> print(f"{gamma:.6f} {omega:.6f}")
    0.049563 0.100630
    """
    return schedule.compute_optimal_base(G, D, T, type)


def whole_steps(share: float, steps: int) -> int:
    """Return a share of the steps, rounded to whole ones.

    Cut, 0.29 of 100 would be 28: as floats their product is a little below 29.

    >>> whole_steps(0.29, 100)
    29
    """
    return round(share * steps)


def _cooldown_of(
    share: float, steps: int, decay_type: str, final_lr: float, is_absolute: bool
) -> dict[str, Any]:
    """Return the arguments of a cooldown of a share of all steps."""
    if not 0 <= share <= 1:
        raise ValueError(f"cooldown_len: expected a share of the steps in [0, 1], seen {share!r}")
    return {
        "steps": whole_steps(share, require_whole_number("steps", steps, least=1)),
        "type": decay_type,
        "final_lr": final_lr,
        "final_lr_absolute": is_absolute,
    }


def _countdown(num_steps: int) -> Floats:
    """Return (n - i) / (n - 1) for i = 1..n: from 1 down to 0; a single step is at 1."""
    if num_steps == 1:
        return np.ones(1)
    return np.asarray(np.arange(num_steps - 1, -1, -1) / (num_steps - 1))


def _new_axes() -> Any:
    try:
        pyplot = import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ImportError(
            "plot: expected matplotlib to be installed, or axes to draw on"
        ) from error
    return pyplot.subplots(figsize=(4, 3), layout="constrained")[1]
