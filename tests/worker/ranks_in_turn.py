"""What many ranks find together, played by one process: each of them in turn."""

from collections.abc import Callable
from typing import TypeVar

import torch

Answer = TypeVar("Answer")


def over_ranks(function: Callable[..., Answer], world_size: int) -> Answer:
    """Run ``function`` as each rank, then once more as the last, which hears what all gathered.

    ``function`` takes ``rank``, ``world_size`` and ``gather``, and may gather several times.
    """
    heard = [_listened(function, rank, world_size) for rank in range(world_size)]
    totals = iter([torch.stack(shares).sum(0) for shares in zip(*heard, strict=True)])
    return function(rank=world_size - 1, world_size=world_size, gather=lambda _: next(totals))


def _listened(function: Callable[..., Answer], rank: int, world_size: int) -> list[torch.Tensor]:
    shares: list[torch.Tensor] = []

    def listen(values: torch.Tensor) -> torch.Tensor:
        shares.append(values.clone())
        return torch.ones_like(values)  # what this one makes of it is not looked at

    function(rank=rank, world_size=world_size, gather=listen)
    return shares
