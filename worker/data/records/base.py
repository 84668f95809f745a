"""Where records come from, whatever the source: texts in pieces, or rows in chunks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

from roadless.worker.data.formats.chunk import Choose, Chunk, Piece
from roadless.worker.data.progress import Tell
from roadless.worker.data.sources.source_file import Identity
from roadless.worker.errors import DataInvalid

Split = Literal["train", "eval"]


class Records(Protocol):
    """A source, found and allowed, but not read yet."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def identity(self) -> list[Identity]:
        """What tells its content from another without reading it."""

    @property
    def has_own_eval(self) -> bool:
        """Whether what is held out is a split of its own."""

    @property
    def is_raw(self) -> bool:
        """Whether its texts are bytes that nothing shall be put between."""

    def pieces(self, split: Split, *, work: Path, tell: Tell) -> Iterator[Piece]:
        """Yield the texts in order.

        ``work``: a folder to use on the way. ``tell`` hears how far what is fetched into it is.
        """

    def chunks(self, split: Split, *, work: Path, choose: Choose, tell: Tell) -> Iterator[Chunk]:
        """Yield the rows in order, of the columns that ``choose`` wants."""


def splits_of(records: Records) -> tuple[Split, ...]:
    """The splits that the source has of its own, in the order in which they are prepared."""
    return ("train", "eval") if records.has_own_eval else ("train",)


def require_all_filled(ends: Mapping[Split, int], *, name: str, of: str) -> None:
    """Raise DataInvalid when a split is empty.

    ``ends``: how many rows or tokens there were after each split, in order.
    """
    before = 0
    for split, end in ends.items():
        if end == before:
            purpose = {"train": "train on", "eval": "hold out"}[split]
            raise DataInvalid(f"expected {of} of {name} to {purpose}, saw none")
        before = end
