"""A trial of a model that we did not write: what does not fit fails at the start, and by name."""

import torch
from torch import nn

from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import evaluating

#: Two, since some models take a lone sample and no batch.
_SAMPLES = 2


def require_outputs(model: nn.Module, *, data: Description, num_tokens: int | None = None) -> None:
    """Run zeros through the model; raise ModelInvalid unless outputs of the right shape come out.

    ``num_tokens``: how many of each sample's tokens are tried at most; None: all.
    """
    length = min(data.tokens_per_sample, num_tokens or data.tokens_per_sample)
    shape = (length,) if length else data.input_shape
    inputs = torch.zeros(_SAMPLES, *shape, dtype=torch.int64 if length else torch.float32)
    try:
        with evaluating(model), torch.no_grad():
            outputs = model(inputs)
    except Exception as error:  # whatever a foreign model does with inputs that it cannot read
        raise ModelInvalid(
            f"expected a model for samples of shape {data.input_shape}, saw "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise ModelInvalid(f"expected a model that returns a tensor, saw {type(outputs).__name__}")
    if not _fits(tuple(outputs.shape), length=length, num_outputs=data.num_outputs):
        tokens = f"{length}, " if length else ""
        raise ModelInvalid(
            f"expected outputs of shape ({_SAMPLES}, {tokens}{data.num_outputs}), saw "
            f"{tuple(outputs.shape)}"
        )


def _fits(shape: tuple[int, ...], *, length: int, num_outputs: int) -> bool:
    """One row of outputs a sample, or one a token; a vocabulary may be larger than the data's."""
    match shape:
        case (samples, outputs):
            return samples == _SAMPLES and outputs == num_outputs
        case (samples, tokens, outputs):
            return (samples, tokens) == (_SAMPLES, length) and outputs >= num_outputs
        case _:
            return False
