"""Data made from a seed: for tests and benches that must not wait for files.

Only raw words of Philox are drawn, which numpy guarantees, so a seed always gives the same data.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from roadless.service.contract.job.data import (
    SyntheticClassification,
    SyntheticRegression,
    SyntheticTokens,
)
from roadless.worker.data.prepared.row_dataset import NumberRows, Table
from roadless.worker.data.prepared.token_dataset import TokenString, TokenWindows
from roadless.worker.data.prepared.tokenizer import narrowest

_HELD_OUT_DIVISOR = 20  # the last 5 %
#: What is drawn, as the second word of the key: one stream for each, independent of the others.
_RULE, _INPUTS, _NOISE, _CHANCE = range(4)


def classification(spec: SyntheticClassification) -> NumberRows:
    """Return samples around one centre per class; the classes alternate row by row."""
    num_rows, width = spec.num_train + spec.num_eval, math.prod(spec.input_shape)
    centres = _uniform(spec.seed, _RULE, (spec.num_classes, width))
    targets = np.arange(num_rows, dtype=np.int64) % spec.num_classes
    inputs = _uniform(spec.seed, _NOISE, (num_rows, width))
    inputs *= np.float32(spec.noise)
    inputs += centres[targets]
    return _rows(spec, inputs, targets, num_classes=spec.num_classes)


def regression(spec: SyntheticRegression) -> NumberRows:
    """Return inputs in [-1, 1] and a linear function of them plus noise."""
    num_rows, width = spec.num_train + spec.num_eval, math.prod(spec.input_shape)
    weights = _uniform(spec.seed, _RULE, (width, spec.num_targets)) / np.float32(math.sqrt(width))
    inputs = _uniform(spec.seed, _INPUTS, (num_rows, width))
    # einsum without a library's threads: it sums in the same order everywhere. Arm fuses a product
    # with its sum, which may round the last bit differently.
    targets = np.einsum("rw,wt->rt", inputs, weights, optimize=False)
    targets += np.float32(spec.noise) * _uniform(spec.seed, _NOISE, targets.shape)
    return _rows(spec, inputs, targets, num_classes=0)


def tokens(spec: SyntheticTokens, *, context: int) -> TokenWindows:
    """Return windows over a phrase that is repeated with random errors."""
    phrase = _words(spec.seed, _RULE, spec.phrase) % np.uint64(spec.vocabulary)
    said = phrase[np.arange(spec.num_tokens) % spec.phrase].astype(narrowest(spec.vocabulary))
    slips = _words(spec.seed, _NOISE, spec.num_tokens)
    is_slip = (_uniform(spec.seed, _CHANCE, (spec.num_tokens,)) + 1) / 2 < spec.noise
    said[is_slip] = (slips % np.uint64(spec.vocabulary))[is_slip]
    string = TokenString(
        tokens=said,
        num_train=len(said) - len(said) // _HELD_OUT_DIVISOR,
        vocabulary=spec.vocabulary,
        bytes_per_token=0.0,
        fingerprint=hashlib.sha256(said.tobytes()).hexdigest(),
        source="synthetic",
    )
    return TokenWindows(string, context=context)


def _rows(
    spec: SyntheticClassification | SyntheticRegression,
    inputs: NDArray[np.float32],
    targets: NDArray[np.int64] | NDArray[np.float32],
    *,
    num_classes: int,
) -> NumberRows:
    every = np.arange(len(inputs), dtype=np.int64)
    table = Table(
        inputs=inputs.reshape(-1, *spec.input_shape),
        targets=targets,
        train_rows=every[: spec.num_train],
        eval_rows=every[spec.num_train :],
        num_classes=num_classes,
        normalization=None,
        fingerprint=hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest(),
        has_uncounted=False,
        class_names=(),
        columns=(),
    )
    return NumberRows(table)


def _words(seed: int, stream: int, count: int) -> NDArray[np.uint64]:
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)


def _uniform(seed: int, stream: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers in [-1, 1) that float32 holds exactly."""
    words = _words(seed, stream, math.prod(shape)) >> np.uint64(40)
    values = words.astype(np.float32)
    values *= np.float32(2**-23)
    values -= 1
    return values.reshape(shape)
