"""Which rows are held out: a pure function of their number and a seed."""

import numpy as np
from numpy.typing import NDArray

#: Apart from every key of ``order.py``, whose second word is the number of an epoch.
_SECOND_WORD = 2**64 - 1


def drawn_rows(num_rows: int, *, num_drawn: int, seed: int) -> NDArray[np.int64]:
    """Return ``num_drawn`` of the numbers below ``num_rows``, in rising order.

    ``seed``: in [0, 2**63).
    """
    key = np.array([seed, _SECOND_WORD], dtype=np.uint64)
    # Sorting raw words, as in order.py: numpy promises to keep only the raw stream.
    words = np.random.Philox(key=key).random_raw(num_rows)
    return np.sort(np.argsort(words, kind="stable")[:num_drawn]).astype(np.int64)
