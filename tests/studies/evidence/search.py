"""A search over learning rates that is not content with an edge.

Rates are 2 to the power of k / per_octave for whole numbers k. While the best of them is the
smallest or the largest tried, the grid grows on that side; how often is bounded, and who reads the
result is told whether the best lies inside.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

#: How often a grid may grow, by one point each time.
MAX_GROWTHS = 8


@dataclass(frozen=True)
class Search:
    """What is known of one method's losses by rate."""

    #: The smallest and the largest exponent k of the grid.
    low: int
    high: int
    per_octave: int = 1
    #: Loss by exponent; infinite where a run diverged.
    losses: Mapping[int, float] = field(default_factory=dict)
    num_growths: int = 0

    def __post_init__(self) -> None:
        if self.high - self.low < 2:
            raise ValueError(
                f"expected at least 3 exponents, so that one is inside; "
                f"saw {self.low} to {self.high}"
            )

    @property
    def missing(self) -> list[int]:
        """Exponents of the grid without a loss."""
        return [k for k in range(self.low, self.high + 1) if k not in self.losses]

    @property
    def best(self) -> int:
        """The exponent with the least loss."""
        return min(self.losses, key=lambda k: (self.losses[k], k))

    @property
    def is_inside(self) -> bool:
        """Whether the best exponent has worse neighbours on both sides."""
        return min(self.losses) < self.best < max(self.losses)

    def rate(self, exponent: int) -> float:
        """Return the learning rate of an exponent."""
        return float(2.0 ** (exponent / self.per_octave))

    def told(self, losses: Mapping[int, float]) -> "Search":
        """Return the search with these losses added, grown if the best is on an edge.

        What is not finite counts as infinite, as a diverged run is no run to choose.
        """
        known = {k: loss if math.isfinite(loss) else math.inf for k, loss in losses.items()}
        search = replace(self, losses={**self.losses, **known})
        if search.missing or search.is_inside or search.num_growths == MAX_GROWTHS:
            return search
        return search._grown()

    def _grown(self) -> "Search":
        num_growths = self.num_growths + 1
        if self.best == self.low:
            return replace(self, low=self.low - 1, num_growths=num_growths)
        return replace(self, high=self.high + 1, num_growths=num_growths)
