"""Does a language model look ahead? It would train without an error, and know what it is asked.

Asked before the first step (``trial.py``), on weights with noise added: those that start at zero
would hide what they are about to learn.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from roadless.optim.numerics.sharding import local
from roadless.worker.distributed.parallel import reshard
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.trial import SAMPLES
from roadless.worker.training.outputs import distance, nearness, outputs_of

#: Numbers drawn to stir weights with, over and over; a prime, so that no two rows get the same.
_STIR_NUMBERS = 65_537
_STIR_OF_VECTORS = 0.1


def require_causal(model: nn.Module, tokens: torch.Tensor, *, num_tokens: int) -> None:
    """Raise ModelInvalid when an output depends on a token behind it.

    ``tokens``: (1, tokens), at least two, numbers below ``num_tokens``.
    """
    with _stirred(model):
        found = _leak(model, tokens, num_tokens=num_tokens)
    if found is None:  # stirred, it computes no numbers
        found = _leak(model, tokens, num_tokens=num_tokens)
    if found is not None and found[1] > nearness(model):
        raise ModelInvalid(
            f"expected outputs that depend on no later token, saw those before token {found[0]} "
            f"change with it, by {found[1]:.2g} of the largest: the model attends in both "
            "directions; an encoder of transformers needs is_decoder = true in its config"
        )


def _leak(model: nn.Module, tokens: torch.Tensor, *, num_tokens: int) -> tuple[int, float] | None:
    """The place from which tokens were changed, and by how much that changed outputs before it.

    Of a few places the one with the largest change; None where outputs are no numbers.
    """
    length = tokens.shape[1]
    cuts = sorted({1, length // 2, length - 1})
    rows = [tokens, *(_changed_from(cut, tokens, num_tokens=num_tokens) for cut in cuts)]
    # Two at a time: the memory of a step may not suffice for all.
    parts = [
        outputs_of(model, torch.cat(rows[i : i + SAMPLES])) for i in range(0, len(rows), SAMPLES)
    ]
    unchanged, *others = (outputs for part in parts for outputs in part)
    if not all(bool(part.isfinite().all()) for part in parts):
        return None
    changes = [
        (cut, distance(unchanged, outputs, rows=cut))
        for cut, outputs in zip(cuts, others, strict=True)
    ]
    return max(changes, key=lambda found: found[1])


def _changed_from(cut: int, tokens: torch.Tensor, *, num_tokens: int) -> torch.Tensor:
    """One and the same other token from there on: what sees all of them sees much of it."""
    changed = tokens.clone()
    changed[:, cut:] = (tokens[:, cut] + 1) % num_tokens
    return changed


@contextmanager
def _stirred(model: nn.Module) -> Iterator[None]:
    """Add noise to all parameters in the block, about as large as usual weights are."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(_STIR_NUMBERS, generator=generator)
    kept = [local(parameter).detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            _stir(parameter, numbers.to(parameter.device, parameter.dtype))
        reshard(model)  # the whole that a pass has gathered does not follow its shards
        yield
    finally:
        for parameter, values in zip(parameters, kept, strict=True):
            local(parameter.detach()).copy_(values)
        reshard(model)


def _stir(parameter: nn.Parameter, numbers: torch.Tensor) -> None:
    part = local(parameter.detach())
    num_inputs = parameter.shape[1:].numel() if parameter.dim() > 1 else 0
    scale = num_inputs**-0.5 if num_inputs else _STIR_OF_VECTORS
    repeats = -(-part.numel() // len(numbers))
    part.add_(numbers.repeat(repeats)[: part.numel()].reshape(part.shape), alpha=scale)
