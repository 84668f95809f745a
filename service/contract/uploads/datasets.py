"""Uploaded data sets: what a user creates, what the API answers, what ranks fetch.

A data set is open while files are uploaded in parts, then sealed: from then on nothing in it
changes, and jobs may use it.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from roadless.service.contract.base import Message, Resource, Spec
from roadless.service.contract.checkpoint.manifest import FileName
from roadless.service.contract.job.data import Format

#: The largest part of a file, and the most parts of one: 640 GB.
MAX_PART_BYTES = 64 * 2**20
MAX_PARTS = 10_000
MAX_FILES = 10_000

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class DatasetState(StrEnum):
    """Where a data set is in its life."""

    OPEN = "open"  #: takes files
    SEALED = "sealed"  #: can be trained on, and no longer changes


class NewDataset(Spec):
    """What a user states about a data set before uploading its files."""

    name: str = Field(min_length=1, max_length=100)
    format: Format


class DatasetPart(Message):
    """Some bytes of a file, which follow those of the part before."""

    offset: int = Field(ge=0)
    size: int = Field(ge=1)
    sha256: Sha256


class DatasetFile(Message):
    """A file: its parts in order. ``sha256`` is that of the parts' hashes in a row, as text."""

    name: FileName
    size: int = Field(ge=0)
    sha256: Sha256
    parts: tuple[DatasetPart, ...] = Field(max_length=MAX_PARTS)


class DatasetContent(Message):
    """What a rank needs to read a sealed data set."""

    dataset_id: str
    format: Format
    files: tuple[DatasetFile, ...] = Field(max_length=MAX_FILES)


class FileSummary(Resource):
    """A file of a data set. ``size``: bytes from the beginning without a gap."""

    name: str
    size: int
    num_parts: int


class Dataset(Resource):
    """An uploaded data set; the list of its files is left out in lists of data sets."""

    object: Literal["dataset"] = "dataset"
    id: str
    project: str
    name: str
    format: Format
    state: DatasetState
    num_files: int
    total_bytes: int
    created_at: datetime
    files: list[FileSummary] = []
