"""Data sets that were uploaded to the service: fetched from it with the attempt's token."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from roadless.service.contract.uploads.datasets import DatasetContent, DatasetFile
from roadless.worker.data.progress import Tell
from roadless.worker.data.sources.patterns import matcher
from roadless.worker.data.sources.source_file import SourceFile, require_once
from roadless.worker.errors import DataNotFound

_SHOWN_FILES = 20


class Uploads(Protocol):
    """What a rank can ask the service for (``worker/evaluation/inputs.py``)."""

    def content(self, dataset_id: str) -> DatasetContent:
        """Return the format and the files of a sealed data set of the job's project."""

    def download(self, target: Path, *, dataset_id: str, file: DatasetFile, tell: Tell) -> None:
        """Write one of its files to ``target``, part by part, each checked against its hash."""


class NoUploads:
    """For use without a service: a stranger who verifies a model has no token for its data."""

    def content(self, dataset_id: str) -> DatasetContent:
        """Refuse."""
        raise DataNotFound(f"expected the service that {dataset_id} was uploaded to, saw none")

    def download(self, *_: object, **__: object) -> None:
        """Refuse."""
        raise AssertionError("expected no file of a data set without content")


def find(
    patterns: str | Iterable[str], *, content: DatasetContent, uploads: Uploads
) -> list[SourceFile]:
    """Return the files that the patterns name, sorted by name within each pattern.

    Raises DataNotFound for a pattern without a file, and DataInvalid for a file of two patterns.
    """
    each = [patterns] if isinstance(patterns, str) else list(patterns)
    found = [
        _source_file(file, dataset_id=content.dataset_id, uploads=uploads)
        for pattern in each
        for file in _matching(content, pattern)
    ]
    require_once(found)
    return found


def _matching(content: DatasetContent, pattern: str) -> list[DatasetFile]:
    is_match = matcher(pattern)
    found = [file for file in content.files if is_match(file.name)]
    if not found:
        names = ", ".join(file.name for file in content.files[:_SHOWN_FILES])
        raise DataNotFound(
            f"expected files of {content.dataset_id} that match {pattern!r}, saw {names}"
        )
    return sorted(found, key=lambda file: file.name)


def _source_file(file: DatasetFile, *, dataset_id: str, uploads: Uploads) -> SourceFile:
    def fetch(work: Path, tell: Tell) -> Path:
        target = work / "fetched"
        uploads.download(target, dataset_id=dataset_id, file=file, tell=tell)
        return target

    # The hash alone: the same content uploaded twice is prepared once.
    identity: dict[str, str | int] = {"sha256": file.sha256, "size": file.size}
    return SourceFile(name=file.name, size=file.size, identity=identity, fetch=fetch)
