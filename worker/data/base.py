"""What a data set is to the rest of the worker: a description, and batches by number.

A data set is read-only and holds no position: the loop owns the step, ``sampler.py`` turns it into
sample numbers, and so any step of any run can be requested at any time.
"""

from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from roadless.service.contract.checkpoint.manifest import DataShape

Indices = NDArray[np.int64]
#: How PyTorch aligns the memory of a new tensor.
ALIGNMENT_BYTES: Final = 64
#: A target that does not count, such as the padding after a short text; torch's own default.
UNCOUNTED: Final = -100


@dataclass(frozen=True)
class Batch:
    """A batch of samples, along the first axis of both tensors."""

    inputs: torch.Tensor
    targets: torch.Tensor
    #: Whether some targets may be UNCOUNTED; targets are counted only then.
    has_uncounted: bool = True

    def to(self, device: torch.device) -> Self:
        """Return the batch on ``device``."""
        if self.inputs.device == device:
            return self
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        return type(self)(inputs, targets, self.has_uncounted)

    def split(self, size: int) -> list[Self]:
        """Cut the batch into batches of ``size`` samples, in order; nothing is copied."""
        pairs = zip(torch.split(self.inputs, size), torch.split(self.targets, size), strict=True)
        return [type(self)(inputs, targets, self.has_uncounted) for inputs, targets in pairs]

    def aligned(self) -> Self:
        """Return the batch with tensors aligned like new ones; they are copied where they are not.

        With another alignment, libraries sum in another order, and so to other bits.
        """
        inputs, targets = _aligned(self.inputs), _aligned(self.targets)
        if inputs is self.inputs and targets is self.targets:
            return self
        return type(self)(inputs, targets, self.has_uncounted)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.data_ptr() % ALIGNMENT_BYTES == 0 else tensor.clone()


@dataclass(frozen=True)
class Description:
    """What a model and a receipt must know about the data."""

    input_shape: tuple[int, ...]  #: of one sample
    num_classes: int  #: classes, or the size of the vocabulary; 0 for regression
    tokens_per_sample: int  #: 0 for data without tokens
    fingerprint: str  #: SHA-256 of the content, lower-case hexadecimal
    num_targets: int = 0  #: for regression, numbers to predict for each sample
    class_names: tuple[str, ...] = ()  #: in the order of their numbers; () where they have none
    bytes_per_token: float = 0.0  #: of held-out text, on average; 0: not text, or not known
    columns: tuple[str, ...] = ()  #: that the inputs are made of, in order; see DataShape
    mean: tuple[float, ...] = ()  #: subtracted from each number, or channel; see DataShape
    deviation: tuple[float, ...] = ()  #: what is left is divided by
    white: int = 0  #: of images: the highest number of a file; 0 for other samples

    @property
    def num_outputs(self) -> int:
        """Width of the last layer: classes, tokens of the vocabulary, or targets."""
        return self.num_classes or self.num_targets

    @property
    def shape(self) -> DataShape:
        """What is needed to build a model for such data again."""
        return DataShape(
            input_shape=self.input_shape,
            num_classes=self.num_classes,
            num_targets=self.num_targets,
            tokens_per_sample=self.tokens_per_sample,
            class_names=self.class_names,
            columns=self.columns,
            mean=self.mean,
            deviation=self.deviation,
            white=self.white,
        )

    @classmethod
    def of_shape(cls, shape: DataShape) -> Self:
        """Describe data of which only the shape is known."""
        return cls(
            shape.input_shape,
            shape.num_classes,
            shape.tokens_per_sample,
            fingerprint="",
            num_targets=shape.num_targets,
            class_names=shape.class_names,
            columns=shape.columns,
            mean=shape.mean,
            deviation=shape.deviation,
            white=shape.white,
        )


class TrainSplit(Protocol):
    """The training part of a data set: samples by global number."""

    @property
    def description(self) -> Description:
        """Shapes and fingerprint of the whole data set."""

    @property
    def num_train(self) -> int:
        """Training samples in one epoch, at least 1."""

    def train_batch(self, indices: Indices) -> Batch:
        """Return the training samples with these numbers: ``epoch * num_train + sample``.

        A sample is the same in every batch.
        """


class EvalSplit(Protocol):
    """The held-out part of a data set: samples by position."""

    @property
    def description(self) -> Description:
        """Shapes and fingerprint of the whole data set."""

    @property
    def num_eval(self) -> int:
        """Held-out samples, at least 1."""

    def eval_batch(self, start: int, stop: int) -> Batch:
        """Return the held-out samples ``start`` to ``stop - 1``, in data-set order."""


class DataSet(TrainSplit, EvalSplit, Protocol):
    """Both splits of one source."""
