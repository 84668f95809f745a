"""How the ranks that write one training state inform each other, beside training.

Through the key-value store of the rendezvous, so that no step waits and no collective is in the
way. Values are text; whatever waits does so in a thread that is not training's.
"""

from collections.abc import Collection
from typing import Protocol

from pydantic import TypeAdapter

from roadless.service.contract.checkpoint.manifest import CheckpointFile

_FILES: TypeAdapter[tuple[CheckpointFile, ...] | None] = TypeAdapter(
    tuple[CheckpointFile, ...] | None
)


class Store(Protocol):
    """The part of ``torch.distributed.Store`` that is used; safe to use from several threads."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value, for all ranks."""

    def get(self, key: str, /) -> bytes:
        """Return the value; waits until there is one."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys have a value."""


class StorePeers:
    """One rank's view of the others. ``others``: the ranks that write beside the lead."""

    def __init__(self, store: Store, *, rank: int, is_lead: bool, others: Collection[int]) -> None:
        self._store = store
        self._rank = rank
        self._others = sorted(others)
        self.is_lead = is_lead

    def name(self, number: int, checkpoint_id: str) -> None:
        """Give the others the id of the attempt's ``number``-th state."""
        self._store.set(f"state/{number}", checkpoint_id)

    def name_of(self, number: int) -> str:
        """Return the id that the lead gives; waits for it."""
        return self._store.get(f"state/{number}").decode()

    def tell(self, checkpoint_id: str, files: tuple[CheckpointFile, ...] | None) -> None:
        """Report that this rank's files are uploaded or, with None, that they never will be."""
        self._store.set(f"files/{checkpoint_id}/{self._rank}", _FILES.dump_json(files).decode())

    def hear(self, checkpoint_id: str) -> list[tuple[CheckpointFile, ...] | None] | None:
        """Return what each of the others reported; None until all have."""
        keys = [f"files/{checkpoint_id}/{rank}" for rank in self._others]
        if not self._store.check(keys):
            return None
        return [_FILES.validate_json(self._store.get(key)) for key in keys]
