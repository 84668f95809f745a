"""Runs the model and its exported form on the same inputs and compares their outputs."""

from collections.abc import Callable

import torch

from roadless.worker.export.errors import OutputsDiffer
from roadless.worker.export.source import Loaded

#: The batches that are tried; a language model also gets one token less with each.
BATCH_SIZES = (1, 3)

_SEED = 0

#: What was written: from a batch of inputs to its outputs.
Written = Callable[[torch.Tensor], torch.Tensor]


def examples(loaded: Loaded) -> list[torch.Tensor]:
    """Inputs for the model, a batch of each size: standard normal, or tokens drawn evenly."""
    return [_inputs(loaded, batch_size, shorter) for shorter, batch_size in enumerate(BATCH_SIZES)]


def require_same(loaded: Loaded, written: Written, *, tolerance: float) -> float:
    """Return the largest difference, relative to the largest output, or of 1 where that is less.

    Raises OutputsDiffer when it exceeds ``tolerance``, or is no number.
    """
    difference = max(_difference(loaded, written, inputs) for inputs in examples(loaded))
    if not difference <= tolerance:
        raise OutputsDiffer(
            f"expected the outputs of the model to within {tolerance:g} of their size, saw outputs "
            f"that differ by {difference:.3g}"
        )
    return difference


def _difference(loaded: Loaded, written: Written, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        expected, seen = loaded.model(inputs), written(inputs)
    if seen.shape != expected.shape:
        raise OutputsDiffer(
            f"expected outputs of shape {tuple(expected.shape)} for inputs of shape "
            f"{tuple(inputs.shape)}, saw {tuple(seen.shape)}"
        )
    scale = max(1.0, expected.abs().max().item())
    return float((seen - expected).abs().max().item() / scale)


def _inputs(loaded: Loaded, batch_size: int, shorter: int) -> torch.Tensor:
    data, generator = loaded.data, torch.Generator().manual_seed(_SEED)
    if not data.tokens_per_sample:
        return torch.randn(batch_size, *data.input_shape, generator=generator)
    length = max(1, data.tokens_per_sample - shorter)
    return torch.randint(data.num_classes, (batch_size, length), generator=generator)
