"""Warmup and cooldown, which `optim/schedules/schedules.py` puts around a schedule's main part.

Each is read from a mapping, has an end rate and makes rates relative to the base rate; numpy only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np

from roadless.optim.checks import require_above_zero, require_at_least_zero
from roadless.optim.theory.rows import Floats, require_whole_number

DecayType = Literal["linear", "sqrt"]
PartT = TypeVar("PartT", "Warmup", "Cooldown")


@dataclass(frozen=True, slots=True)
class End:
    """The rate at which a part begins or ends."""

    name: str
    value: float
    #: Whether the value is a rate; otherwise it is a share of the base rate.
    is_absolute: bool

    def over(self, base_lr: float) -> float:
        """Return the share of the base rate.

        Raises:
            ValueError: it is negative or above the base rate.
        """
        highest = base_lr if self.is_absolute else 1.0
        if not 0 <= self.value <= highest or highest == 0:
            top = "base_lr" if self.is_absolute else "a share of base_lr"
            raise ValueError(f"{self.name}: expected 0 to {highest:g} ({top}), seen {self.value!r}")
        return float(self.value / highest)

    def check_share(self) -> None:
        """Refuse a share outside [0, 1].

        Raises:
            ValueError: it is a share and not in [0, 1].
        """
        if not self.is_absolute:
            self.over(1.0)


@dataclass(frozen=True, slots=True)
class Warmup:
    """A linear rise that would reach the base rate in the step after its last."""

    steps: int = 0
    #: The first rate: a share of the base rate in (0, 1], or a rate where it is absolute.
    warmup_lr: float = 1e-10
    warmup_lr_absolute: bool = False

    def __post_init__(self) -> None:
        require_whole_number("warmup_kwargs.steps", self.steps, least=0)
        require_above_zero({"warmup_lr": self.warmup_lr}, "warmup_lr")
        self.first.check_share()

    @property
    def first(self) -> End:
        """The first rate."""
        return End("warmup_lr", self.warmup_lr, is_absolute=self.warmup_lr_absolute)

    def rates(self, num_steps: int, *, first: float) -> Floats:
        """Return the rates relative to the base rate, from ``first`` up."""
        return first + np.arange(num_steps) / max(num_steps, 1) * (1 - first)


@dataclass(frozen=True, slots=True)
class Cooldown:
    """A fall from the last rate of the main part, which is not repeated, to the final rate."""

    steps: int = 0
    type: DecayType = "linear"
    #: The last rate: a share of the base rate in [0, 1], or a rate where it is absolute.
    final_lr: float = 1e-10
    final_lr_absolute: bool = False

    def __post_init__(self) -> None:
        require_whole_number("cooldown_kwargs.steps", self.steps, least=0)
        require_at_least_zero({"final_lr": self.final_lr}, "final_lr")
        self.final.check_share()
        if self.type not in ("linear", "sqrt"):
            raise ValueError(f"decay type: expected linear or sqrt, seen {self.type!r}")

    @property
    def final(self) -> End:
        """The last rate."""
        return End("final_lr", self.final_lr, is_absolute=self.final_lr_absolute)

    def rates(self, num_steps: int, *, last: float, final: float) -> Floats:
        """Return the rates relative to the base rate, from below ``last`` down to ``final``."""
        if num_steps and final > last:
            raise ValueError(
                f"final_lr: expected at most the last rate before the cooldown, {last:g} of the "
                f"base rate, seen {final:g} of it"
            )
        # Counted from the end: rates of almost zero keep all their digits.
        left = np.arange(num_steps - 1, -1, -1) / max(num_steps, 1)
        return final + (last - final) * (left if self.type == "linear" else _one_minus_sqrt(left))


def _one_minus_sqrt(left: Floats) -> Floats:
    """Return 1 - sqrt(1 - left), without cancellation."""
    return np.asarray(left / (1 + np.sqrt(1 - left)))


def read_part(name: str, part: type[PartT], arguments: Mapping[str, Any] | None) -> PartT:
    """Make a warmup or cooldown from its arguments; None means zero steps.

    Raises:
        ValueError: an argument is unknown or out of range.
    """
    known = [field.name for field in fields(part)]
    unknown = [key for key in arguments or () if key not in known]
    if unknown:
        raise ValueError(f"{name}: expected {', '.join(known)}, seen {unknown[0]!r}")
    return part(**(arguments or {}))
