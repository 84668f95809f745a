"""Activation checkpointing: a block's activations are computed again when the gradient needs them.

Memory for one block at a time, for a third more arithmetic. Gradients are the same.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from roadless.optim.batchnorm import using_buffers
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import blocks_of


def recompute_activations(model: nn.Module, *, is_compiled: bool = False) -> None:
    """Let each block of the model drop its activations, in place; names stay as they are.

    Raises ModelInvalid for a model without blocks, and for a compiled one with batch norm in them.
    """
    name, blocks = type(model).__name__, blocks_of(model)
    if not blocks:
        raise ModelInvalid(f"expected a model with blocks for activation_checkpointing, saw {name}")
    for block in blocks:
        options: dict[str, Any] = {"use_reentrant": False}
        if statistics := _statistics(block):
            if is_compiled:
                raise ModelInvalid(
                    f"expected blocks without batch norm for activation_checkpointing with "
                    f"compile, saw {name}"
                )
            options["context_fn"] = partial(_contexts, block, tuple(statistics))
        block.forward = partial(checkpoint, block.forward, **options)


def _contexts(
    block: nn.Module, names: tuple[str, ...]
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The first pass as it is; the second without a second update of batch-norm statistics."""
    return nullcontext(), using_buffers(block, {name: block.get_buffer(name) for name in names})


def _statistics(block: nn.Module) -> list[str]:
    """Names of the buffers that a pass in training changes."""
    return [
        f"{name}.{leaf}" if name else leaf
        for name, module in block.named_modules()
        if isinstance(module, _BatchNorm)
        for leaf, _ in module.named_buffers()
    ]
