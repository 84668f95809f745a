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
    require_fit(outputs, num_samples=SAMPLES, num_tokens=length, num_outputs=data.num_outputs)


def require_fit(
    outputs: object,
    *,
    num_samples: int,
    num_tokens: int,
    num_outputs: int,
    task: Task | None = None,
) -> None:
    """Raise ModelInvalid unless a batch's outputs are of the right type and shape.

    ``num_tokens``: of each sample; 0 for data without. ``task``: that they are for; None: any.
    """
    if not isinstance(outputs, torch.Tensor):
        raise ModelInvalid(f"expected a model that returns a tensor, saw {type(outputs).__name__}")
    if not outputs.is_floating_point():
        raise ModelInvalid(f"expected outputs of a floating-point type, saw {outputs.dtype}")
    if _fits(tuple(outputs.shape), num_samples, num_tokens, num_outputs, task=task):
        return
    tokens = f"{num_tokens}, " if num_tokens and task in (None, "causal_lm") else ""
    raise ModelInvalid(
        f"expected outputs of shape ({num_samples}, {tokens}{num_outputs}), saw "
        f"{tuple(outputs.shape)}"
    )


def _fits(
    shape: tuple[int, ...],
    num_samples: int,
    num_tokens: int,
    num_outputs: int,
    *,
    task: Task | None,
) -> bool:
    """One output row per sample, or one per token; a vocabulary may be larger than the data's."""
    match shape:
        case (samples, outputs):
            return task != "causal_lm" and (samples, outputs) == (num_samples, num_outputs)
        case (samples, tokens, outputs):
            is_row_a_token = (samples, tokens) == (num_samples, num_tokens)
            return task in (None, "causal_lm") and is_row_a_token and outputs >= num_outputs
        case _:
            return False
