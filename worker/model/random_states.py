"""The global random states that a model's code may draw from: of torch, numpy and Python."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

#: What numpy takes as a seed.
_NUMPY_SEEDS = 2**32


@contextmanager
def forked_random_states(*, seed: int) -> Iterator[None]:
    """Draw from states made of ``seed`` in the block, and leave all of them as they were.

    Those of accelerators too, once they are in use. ``seed``: at least 0.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(enabled=True, devices=_devices()):
        torch.default_generator.manual_seed(seed)
        if _devices():
            torch.cuda.manual_seed(seed)
        np.random.seed(seed % _NUMPY_SEEDS)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def random_states() -> tuple[Any, ...]:
    """Return the states as values to compare: who draws in between changes them."""
    of_torch = [torch.default_generator.get_state(), *map(torch.cuda.get_rng_state, _devices())]
    of_numpy = np.random.get_state(legacy=True)
    return (*(state.numpy().tobytes() for state in of_torch), repr(of_numpy), random.getstate())


def _devices() -> list[int]:
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's own
    return [torch.cuda.current_device()] if is_in_use else []
