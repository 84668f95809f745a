"""scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels, ten classes.

Small enough to stay in memory, and part of a package: a data set that is always available. The
package's file is read without importing the package, which takes a second and, where pandas is
installed, loads an allocator that starts a thread: not acceptable in a process that must fork.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from roadless.worker.data.base import Batch, Description, Indices
from roadless.worker.errors import DataNotFound, DataUnreadable

_HELD_OUT_EVERY = 5
_BRIGHTEST = 16.0


class Digits:
    """Images of shape (1, 8, 8), scaled from 0..16 to [-1, 1]; every fifth is held out.

    Raises DataNotFound without scikit-learn, DataUnreadable when its file cannot be read.
    """

    def __init__(self) -> None:
        images, labels = _load()
        self.description = Description(
            input_shape=(1, 8, 8),
            num_classes=10,
            tokens_per_sample=0,
            fingerprint=_fingerprint(images, labels),
            mean=(_BRIGHTEST / 2,),
            deviation=(_BRIGHTEST / 2,),
        )
        is_held_out = np.arange(len(labels)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        self._train = _as_batch(images[~is_held_out], labels[~is_held_out])
        self._eval = _as_batch(images[is_held_out], labels[is_held_out])

    @property
    def num_train(self) -> int:
        """Images to train on."""
        return len(self._train.targets)

    @property
    def num_eval(self) -> int:
        """Images held out."""
        return len(self._eval.targets)

    def train_batch(self, indices: Indices) -> Batch:
        """Return the images with these global numbers; every epoch has the same ones."""
        rows = torch.from_numpy(indices % self.num_train)
        # Copies whole rows, unlike indexing: five times as fast.
        inputs = self._train.inputs.index_select(0, rows)
        return Batch(inputs, self._train.targets.index_select(0, rows), has_uncounted=False)

    def eval_batch(self, start: int, stop: int) -> Batch:
        """Return the held-out images ``start`` to ``stop - 1``."""
        inputs, targets = self._eval.inputs[start:stop], self._eval.targets[start:stop]
        return Batch(inputs, targets, has_uncounted=False)


def _load() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return what ``sklearn.datasets.load_digits`` does: 64 pixels a row, and the labels."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataNotFound("expected the package scikit-learn, which carries digits; saw none")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise DataUnreadable(f"expected to read digits from {path}, saw: {error}") from error
    return rows[:, :-1], rows[:, -1]


def _as_batch(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Batch:
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return Batch(pixels * (2.0 / _BRIGHTEST) - 1.0, torch.tensor(labels, dtype=torch.int64))


def _fingerprint(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
