"""Activation checkpointing: a block's activations are recomputed when the gradient needs them.

Takes memory for one block at a time, and a third more arithmetic. Gradients are the same.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from roadless.optim.buffers import persistent_buffers, using_buffers
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.base import blocks_of


def recompute_activations(model: nn.Module, *, is_compiled: bool = False) -> None:
    """Let each block of the model drop its activations, in place; names stay as they are.

    Raises ModelInvalid for a model without blocks, and for a compiled one with buffers in
    them that a state dict has: torch (2.13) compiles no context around the second pass.
    """
    name, blocks = type(model).__name__, blocks_of(model)
    if not blocks:
        raise ModelInvalid(f"expected a model with blocks for activation_checkpointing, saw {name}")
    for block in dict.fromkeys(blocks):  # one may stand twice
        options: dict[str, Any] = {"use_reentrant": False}
        if names := [buffer for _, buffer in persistent_buffers(block)]:
            if is_compiled:
                raise ModelInvalid(
                    "expected blocks without batch norm or other buffers that a pass may change "
                    f"for activation_checkpointing with compile, saw {', '.join(names)} in {name}; "
                    "leave one of the two out, or register tables with persistent=False"
                )
            options["context_fn"] = partial(_contexts, block, names)
        block.forward = partial(checkpoint, block.forward, **options)


def _contexts(
    block: nn.Module, names: Sequence[str]
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The first pass as it is; the second from the same buffers, which it does not change again.

    Running statistics would count a batch twice; and where the pass depends on what it changes, as
    with spectral norm, the second would compute other activations than the gradient belongs to.
    """
    return nullcontext(), using_buffers(block, {n: block.get_buffer(n).clone() for n in names})
