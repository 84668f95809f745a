"""scikit-learn's breast cancer data: 569 rows of 30 numbers, two classes.

Like digits, it is read from the package's file without importing the package.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from roadless.worker.data.prepared import normalization
from roadless.worker.data.prepared.row_dataset import NumberRows, Table
from roadless.worker.errors import DataNotFound, DataUnreadable

_HELD_OUT_EVERY = 5


def load() -> NumberRows:
    """Return the rows, standardised by the training rows; every fifth is held out.

    Raises DataNotFound without scikit-learn, DataUnreadable when its file cannot be read.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataNotFound("expected the package scikit-learn, which carries the data; saw none")
    path = Path(package.origin).parent / "datasets" / "data" / "breast_cancer.csv"
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=1)
    except (OSError, ValueError) as error:
        raise DataUnreadable(f"expected to read breast_cancer from {path}, saw: {error}") from error
    inputs, targets = rows[:, :-1].astype(np.float32), rows[:, -1].astype(np.int64)
    every = np.arange(len(rows), dtype=np.int64)
    is_held_out = every % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    table = Table(
        inputs=inputs,
        targets=targets,
        train_rows=every[~is_held_out],
        eval_rows=every[is_held_out],
        num_classes=2,
        normalization=normalization.of_rows(inputs, every[~is_held_out]),
        fingerprint=hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest(),
        has_uncounted=False,
        class_names=(),
        columns=(),
    )
    return NumberRows(table)
