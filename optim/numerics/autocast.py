"""Parameters move as if there were no ``torch.autocast`` around, which is meant for forward passes.

A training loop may stand inside it as a whole. Then torch (2.13) would narrow the matrix products
of a step, and it keeps the narrow copies of parameters that a forward pass made: after a step the
next pass would still compute with the old ones, under every optimizer of torch's own too.
"""

from contextlib import ContextDecorator
from functools import cache
from typing import Self

import torch


class outside_autocast(ContextDecorator):  # noqa: N801 -- used as functions are
    """Compute in the tensors' own dtypes; afterwards forward passes see the new parameters.

    Also a decorator. Every step enters it: a generator would take twice as long.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16), outside_autocast():
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """

    def __enter__(self) -> None:
        self._left = [torch.autocast(kind, enabled=False) for kind in _active()]
        for context in self._left:
            context.__enter__()  # type: ignore[no-untyped-call]  # torch's own

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._left):
            context.__exit__(*error)
        torch.clear_autocast_cache()

    def _recreate_cm(self) -> Self:
        # For each call of what is decorated: one may call another.
        return type(self)()


def _active() -> list[str]:
    return [kind for kind in _device_types() if torch.is_autocast_enabled(kind)]


@cache
def _device_types() -> tuple[str, ...]:
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)
