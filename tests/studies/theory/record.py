"""What a study of the theory is: axes to draw on, and rows of numbers for the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Schedules keep their colours through all figures.
COLOURS = {
    "wsd": "#3b75af",
    "linear": "#1b2a41",
    "cosine": "#c8553d",
    "1-sqrt": "#7a3b69",
    "1/sqrt": "#7d8471",
    "constant": "#c9a227",
    "schedule-free": "#2a9d5c",
}
#: From light to dark, for one quantity that grows.
SEQUENCE = ("#b8cfe5", "#8fb3d5", "#6596c4", "#3b75af", "#285a8c", "#1b4067", "#102a45")


def plain_ticks(axis: Any, *, x: Sequence[float] = (), y: Sequence[float] = ()) -> None:
    """Label a logarithmic axis at a few plain numbers, instead of wherever there is a power."""
    if x:
        axis.set_xticks(x, labels=[f"{tick:,g}" for tick in x])
        axis.set_xticks([], minor=True)
    if y:
        axis.set_yticks(y, labels=[f"{tick:g}" for tick in y])
        axis.set_yticks([], minor=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One number of the table."""

    quantity: str
    ours: float
    #: The published package's, as printed; None where none is known.
    published: str | None = None
    #: Decimals to show where nothing is published.
    decimals: int = 4

    @property
    def shown(self) -> str:
        """Ours, with as many decimals as the published one."""
        if self.published is None:
            return f"{self.ours:.{self.decimals}f}"
        return f"{self.ours:.{len(self.published.partition('.')[2])}f}"

    @property
    def agrees(self) -> bool:
        """Whether all published digits are met."""
        return self.published is None or float(self.shown) == float(self.published)


@dataclass(frozen=True, slots=True)
class Study:
    """A question, its numbers and its figure."""

    name: str
    #: What the figure shows, as its caption.
    caption: str
    rows: Callable[[], Sequence[Row]]
    #: Draws on as many axes as there are panels.
    draw: Callable[[Sequence[Any]], None]
    num_panels: int = 2
