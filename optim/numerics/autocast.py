"""Parameters move as if there were no ``torch.autocast`` around, which is meant for forward passes.

A training loop may stand inside it as a whole. Then torch (2.13) would narrow the matrix products
of a step, and it keeps the narrow copies of parameters that a forward pass made: after a step the
next pass would still compute with the old ones, under every optimizer of torch's own too.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def outside_autocast() -> Iterator[None]:
    """Compute in the tensors' own dtypes; afterwards forward passes see the new parameters.

    Also a decorator.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16), outside_autocast():
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    try:
        with ExitStack() as stack:
            for device_type in _active():
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield
    finally:
        torch.clear_autocast_cache()


def _active() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    device_types = ("cpu",) if accelerator is None else ("cpu", accelerator.type)
    return [kind for kind in device_types if torch.is_autocast_enabled(kind)]
