"""Whether the parts of a file follow each other without a gap. Pure."""

import hashlib
from collections.abc import Iterable, Sequence

from roadless.service.contract.uploads.datasets import DatasetFile, DatasetPart


def received(parts: Iterable[DatasetPart]) -> int:
    """Bytes from the beginning of the file up to the first gap or overlap.

    ``parts``: by offset.
    """
    end = 0
    for part in parts:
        if part.offset != end:
            break
        end += part.size
    return end


def is_whole(parts: Sequence[DatasetPart]) -> bool:
    """Whether the parts, by offset, are one file."""
    return received(parts) == sum(part.size for part in parts)


def file_of(name: str, parts: Sequence[DatasetPart]) -> DatasetFile:
    """The file that these parts, by offset, make."""
    hashes = "".join(part.sha256 for part in parts)
    return DatasetFile(
        name=name,
        size=sum(part.size for part in parts),
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        parts=tuple(parts),
    )
