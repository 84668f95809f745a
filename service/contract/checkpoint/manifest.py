"""What a checkpoint consists of: its files with size and hash, and how it was evaluated."""

import math
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from roadless.service.contract.base import Message

#: A file of a checkpoint: one path component, no leading dot. Never built from a request's path.
FILE_NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"

FileName = Annotated[str, StringConstraints(pattern=FILE_NAME_PATTERN)]


#: The widest relative tolerance of a check.
MAX_TOLERANCE: Final = 0.01


class CheckpointKind(StrEnum):
    """The two kinds, which are never one file: a model to use, and a state to resume from."""

    EVAL = "eval"  #: the averaged point x with batch-norm statistics of x: a finished model
    RESUME = "resume"  #: y, z, moments, counters, random states: continues bit for bit


class CheckpointFile(Message):
    """One file: its name, size in bytes and SHA-256 in lower-case hexadecimal."""

    name: FileName
    size: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class EvaluationCheck(Message):
    """What a fresh process found when it loaded the files, before the checkpoint was listed.

    ``loss``: what the receipt's evaluation found over its first ``num_examples`` examples;
    ``seen_loss``: what that process found over them. ``tolerance``: relative; 0: bit for bit.
    """

    num_examples: int = Field(ge=1)
    loss: float
    seen_loss: float
    tolerance: float = Field(0.0, ge=0, le=MAX_TOLERANCE)

    @property
    def holds(self) -> bool:
        """Whether the losses agree within the tolerance; non-finite ones must be the same."""
        if math.isnan(self.loss) or math.isinf(self.loss):
            return repr(self.loss) == repr(self.seen_loss)
        return abs(self.seen_loss - self.loss) <= self.tolerance * abs(self.loss)


#: A manifest is one message, and stays a small one.
MAX_DESCRIBED_INPUTS = 4096


class DataShape(Message):
    """A model's inputs and outputs, so that it can be used without its data.

    The model is given ``(value - mean) / deviation``: of each number of a sample, or of each
    channel of images. Both are () where values are given as they are, and for samples of more than
    ``MAX_DESCRIBED_INPUTS`` numbers; ``columns`` also where nobody named any.
    """

    input_shape: tuple[int, ...]  #: of one sample
    num_classes: int  #: classes, or the size of the vocabulary; 0 for regression
    num_targets: int  #: for regression, numbers to predict for each sample
    tokens_per_sample: int  #: 0 for data without tokens
    class_names: tuple[str, ...] = ()  #: in the order of their numbers; () where they have none
    columns: tuple[str, ...] = ()  #: that the inputs are made of, in order
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    white: int = 0  #: of images: 255, or 65535 for those of 16 bits; 0 for other samples


class SetReceipt(Message):
    """Which examples of a further evaluation set the metrics under its name are about."""

    num_examples: int
    max_batches: int | None = None
    data_fingerprint: str


class EvaluationReceipt(Message):
    """How the loss of an eval checkpoint was computed, so that a stranger can repeat it.

    ``loss`` is the mean of per-example losses, summed in float64 in data-set order. ``data_shape``
    and ``check``: None if written by an earlier release.
    """

    loss: float
    metrics: dict[str, float] = {}
    num_examples: int
    batch_size: int
    max_batches: int | None = None
    threads: int
    torch_version: str
    data_fingerprint: str
    data_shape: DataShape | None = None
    sets: dict[str, SetReceipt] = {}
    check: EvaluationCheck | None = None


class Manifest(Message):
    """A checkpoint's table of contents, stored beside its files and in the database."""

    format_version: int = 1
    checkpoint_id: str
    job_id: str
    attempt_id: str
    kind: CheckpointKind
    step: int = Field(ge=0)
    samples: int = Field(ge=0)
    spec: dict[str, object] = {}
    evaluation: EvaluationReceipt | None = None
    files: tuple[CheckpointFile, ...] = Field(min_length=1, max_length=10_000)

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files)
