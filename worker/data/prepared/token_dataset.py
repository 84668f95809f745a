"""Windows over a string of tokens: the form of every prepared language data set.

A sample predicts ``context`` tokens, each from all tokens before it in its window. Windows are
adjacent, so that one epoch, or one evaluation, predicts every token once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roadless.worker.data.base import Batch, Description, Indices
from roadless.worker.errors import DataInvalid

#: Unsigned and at most 32 bits wide, memory-mapped or not.
Tokens = NDArray[np.unsignedinteger[Any]]

#: A prime: ``context`` epochs in a row cut at every offset, unless it divides the context.
_OFFSET_STRIDE = 104_729


@dataclass(frozen=True)
class TokenString:
    """Tokens, the first ``num_train`` to train on and the rest held out."""

    tokens: Tokens
    num_train: int
    vocabulary: int
    bytes_per_token: float  #: of the held-out text; 0 where that is not known
    fingerprint: str  #: SHA-256 of the tokens
    source: str  #: its name in messages


class TokenWindows:
    """Samples of ``context`` input tokens and the ``context`` tokens that follow each of them.

    Raises DataInvalid when either split is too short for one sample.
    """

    def __init__(self, string: TokenString, *, context: int) -> None:
        _check_lengths(string, context=context)
        self._train = string.tokens[: string.num_train]
        self._eval = string.tokens[string.num_train :]
        self._context = context
        self.description = Description(
            input_shape=(context,),
            num_classes=string.vocabulary,
            tokens_per_sample=context,
            fingerprint=string.fingerprint,
            bytes_per_token=string.bytes_per_token,
        )

    @property
    def num_train(self) -> int:
        """Windows per epoch: as many as fit after the largest offset."""
        return len(self._train) // self._context - 1

    @property
    def num_eval(self) -> int:
        """Held-out windows; they always begin at the first held-out token."""
        return (len(self._eval) - 1) // self._context

    def train_batch(self, indices: Indices) -> Batch:
        """Return the windows with these global numbers; each epoch cuts at another offset."""
        epochs, samples = np.divmod(indices, self.num_train)
        offsets = epochs * _OFFSET_STRIDE % self._context
        return self._windows(self._train, starts=offsets + samples * self._context)

    def eval_batch(self, start: int, stop: int) -> Batch:
        """Return the held-out windows ``start`` to ``stop - 1``."""
        samples = np.arange(start, min(stop, self.num_eval), dtype=np.int64)
        return self._windows(self._eval, starts=samples * self._context)

    def _windows(self, tokens: Tokens, *, starts: Indices) -> Batch:
        # numpy, not torch: this runs in a thread beside training, whose cores it must not take.
        inputs = np.empty((len(starts), self._context), dtype=np.int64)
        targets = np.empty_like(inputs)
        for row, start in enumerate(starts.tolist()):
            window = tokens[start : start + self._context + 1]
            inputs[row], targets[row] = window[:-1], window[1:]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), has_uncounted=False)


def _check_lengths(string: TokenString, *, context: int) -> None:
    splits = {
        "train on": (string.num_train, 2 * context),
        "hold out": (len(string.tokens) - string.num_train, context + 1),
    }
    for purpose, (seen, needed) in splits.items():
        if seen < needed:
            raise DataInvalid(
                f"expected {string.source} to have at least {needed} tokens to {purpose}, for one "
                f"sample of {context} + 1; saw {seen}"
            )
