"""The schedules that schedule-free is compared with, as factors of the peak rate."""

import numpy as np
from numpy.typing import NDArray

from roadless.optim.schedules.by_name import rates

Factors = NDArray[np.float64]

CONSTANT, WSD, LINEAR, COSINE, ONE_MINUS_SQRT = (
    "constant",
    "wsd",
    "linear",
    "cosine",
    "one_minus_sqrt",
)


def factors(name: str, num_steps: int, *, warmup_steps: int = 0) -> Factors:
    """Return the rate of each step, (num_steps,), in units of the peak rate.

    Args:
        name: one of the above; WSD cools down linearly in the last fifth.
        num_steps: steps of the run, at least 1; the last one still has a rate above 0.
        warmup_steps: steps of linear warmup, at least 0.
    """
    return rates(name, steps=num_steps, warmup_steps=warmup_steps)
