"""A trial of a model that we did not write: a misfit fails at the start, with a clear error."""

import torch
from torch import nn

from roadless.service.contract.job.tasks import Task
from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import evaluating
from roadless.worker.model.faults import blaming

#: Two, since some models accept a single sample but no batch.
SAMPLES = 2


def require_outputs(model: nn.Module, *, data: Description, num_tokens: int | None = None) -> None:
    """Run zeros through the model; raise ModelInvalid unless its outputs have the right shape.

    ``num_tokens``: the most tokens of each sample to try; None: all. A lazy model gets its shapes.
    """
    length = min(data.tokens_per_sample, num_tokens or data.tokens_per_sample)
    shape = (length,) if length else data.input_shape
    inputs = torch.zeros(SAMPLES, *shape, dtype=torch.int64 if length else torch.float32)
    with (
        blaming(ModelInvalid, f"a model for samples of shape {data.input_shape}"),
        evaluating(model),
        torch.no_grad(),
    ):
        outputs = model(inputs)
    require_fit(outputs, inputs=inputs, data=data)


def require_fit(
    outputs: object, *, inputs: torch.Tensor, data: Description, task: Task | None = None
) -> None:
    """Raise ModelInvalid unless the outputs for ``inputs`` are of the right type and shape.

    ``task``: that they are for; None: any.
    """
    if not isinstance(outputs, torch.Tensor):
        raise ModelInvalid(f"expected a model that returns a tensor, saw {type(outputs).__name__}")
    if not outputs.is_floating_point():
        raise ModelInvalid(f"expected outputs of a floating-point type, saw {outputs.dtype}")
    rows = tuple(inputs.shape[:2] if data.tokens_per_sample else inputs.shape[:1])
    if _fits(tuple(outputs.shape), rows, data.num_outputs, task=task):
        return
    shape = (*(rows if task in (None, "causal_lm") else rows[:1]), data.num_outputs)
    raise ModelInvalid(f"expected outputs of shape {shape}, saw {tuple(outputs.shape)}")


def _fits(
    shape: tuple[int, ...], rows: tuple[int, ...], num_outputs: int, *, task: Task | None
) -> bool:
    """One output row per sample, or one per token; a vocabulary may be larger than the data's.

    ``rows``: samples, and tokens where there are any.
    """
    match shape:
        case (samples, outputs):
            return task != "causal_lm" and (samples, outputs) == (rows[0], num_outputs)
        case (*places, outputs):
            return task in (None, "causal_lm") and tuple(places) == rows and outputs >= num_outputs
        case _:
            return False
