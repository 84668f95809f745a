"""What studies write down: frozen values that go to JSON and come back."""

import math
from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict

from tests.studies.evidence.search import Search

Floats = Sequence[float] | NDArray[np.float64]

_DIGITS = 6
DIVERGED = math.inf


def _rounded(value: float | None) -> float:
    if value is None or not math.isfinite(value):
        return DIVERGED
    return float(f"{value:.{_DIGITS}g}")


#: A number to six digits, which keeps files small and differences between machines out of them.
#: Of a run that diverged it is infinite, and null in JSON.
Number = Annotated[float, BeforeValidator(_rounded)]


class Record(BaseModel):
    """Frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Spread(Record):
    """A mean over runs, and how well it is known."""

    mean: Number
    #: Standard deviation of the runs (n - 1) over the root of their number.
    standard_error: Number
    num_runs: int

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Raises ValueError for fewer than two values."""
        if len(values) < 2:
            raise ValueError(f"expected at least 2 values, saw {len(values)}")
        with np.errstate(invalid="ignore"):
            error = float(np.std(values, ddof=1)) / len(values) ** 0.5
        return cls(mean=float(np.mean(values)), standard_error=error, num_runs=len(values))

    @property
    def is_finite(self) -> bool:
        """Whether no run diverged."""
        return math.isfinite(self.mean)


class Difference(Record):
    """One method less another, run by run with equal seeds."""

    spread: Spread
    #: Runs in which the first method's value was the larger.
    num_larger: int

    @classmethod
    def of(cls, values: Floats, others: Floats) -> Self:
        """``values`` less ``others``, which belong to the same seeds in the same order."""
        differences = [float(a - b) for a, b in zip(values, others, strict=True)]
        return cls(spread=Spread.of(differences), num_larger=sum(d > 0 for d in differences))


class Tuning(Record):
    """How a rate was chosen."""

    rates: list[Number]
    losses: list[Number]
    best_rate: Number
    #: Whether smaller and larger rates were tried and found worse.
    is_inside: bool

    @classmethod
    def of(cls, search: Search) -> Self:
        """The search in order of rate."""
        exponents = sorted(search.losses)
        return cls(
            rates=[search.rate(k) for k in exponents],
            losses=[search.losses[k] for k in exponents],
            best_rate=search.rate(search.best),
            is_inside=search.is_inside,
        )
