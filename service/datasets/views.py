"""Rows to answers."""

from collections.abc import Sequence

from roadless.service.contract.uploads.datasets import (
    Dataset,
    DatasetFile,
    DatasetState,
    FileSummary,
)
from roadless.service.datasets.tiling import received
from roadless.service.db.tables import DatasetRow


def dataset_resource(
    row: DatasetRow, *, size: tuple[int, int], files: Sequence[DatasetFile] = ()
) -> Dataset:
    """The data set as the API shows it. ``size``: how many files and bytes it has."""
    num_files, total_bytes = size
    return Dataset(
        id=row.id,
        project=row.project,
        name=row.name,
        format=row.format,
        state=DatasetState(row.state),
        num_files=num_files,
        total_bytes=total_bytes,
        created_at=row.created_at,
        files=[file_summary(file) for file in files],
    )


def file_summary(file: DatasetFile) -> FileSummary:
    """The file without its parts."""
    return FileSummary(name=file.name, size=received(file.parts), num_parts=len(file.parts))
