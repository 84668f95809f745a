"""Records of any source: texts in pieces, or rows in chunks."""

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
        """Its name in messages."""

    @property
    def identity(self) -> list[Identity]:
        """What distinguishes its content from any other without reading it."""

    @property
    def has_own_eval(self) -> bool:
        """Whether the held-out records are a separate split."""

    @property
    def is_raw(self) -> bool:
        """Whether its texts are raw bytes, to be joined without separators."""

    def pieces(self, split: Split, *, work: Path, tell: Tell) -> Iterator[Piece]:
        """Yield the texts in order.

        ``work``: a folder for temporary files. ``tell`` receives the progress of fetching into it.
        """

    def chunks(self, split: Split, *, work: Path, choose: Choose, tell: Tell) -> Iterator[Chunk]:
        """Yield the rows in order, with the columns that ``choose`` selects."""


def splits_of(records: Records) -> tuple[Split, ...]:
    """The source's own splits, in the order in which they are prepared."""
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
