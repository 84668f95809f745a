"""Language models that look ahead, each in its own way, and others that only seem to."""

from typing import Any

import torch
from torch import nn

WIDTH = 16


class Base(nn.Module):
    """Embedding, ``mixed`` over (samples, tokens, width), head."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, WIDTH)
        self.head = nn.Linear(WIDTH, num_tokens)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.head(self.mixed(self.embedding(tokens)))

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return stream


class AttendsToAll(Base):
    """Adds nothing at first, as residual blocks do: what it will see is hidden until it learns."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + self.attention(stream, stream, stream, need_weights=False)[0]


class SeesTheNext(Base):
    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.gate = nn.Parameter(torch.zeros(WIDTH))

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + self.gate * stream.roll(-1, dims=1)


class SubtractsTheMean(Base):
    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return stream - stream.mean(dim=1, keepdim=True)


class ConvolvesBothWays(Base):
    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return self.convolution(stream.transpose(1, 2)).transpose(1, 2)


class ReadsInWindows(Base):
    """Of four tokens, which see each other; a cut between two windows shows nothing."""

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        windows = stream.unflatten(1, (-1, 4))
        return (windows + windows.mean(dim=2, keepdim=True)).flatten(1, 2)


class ReadsBackwards(Base):
    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.recurrent = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return self.recurrent(stream)[0]


class ReadsForwards(Base):
    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.recurrent = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return self.recurrent(stream)[0]


class AddsThePast(Base):
    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        return stream.cumsum(dim=1)


class ConvolvesThePast(Base):
    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=2)

    def mixed(self, stream: torch.Tensor) -> torch.Tensor:
        found = self.convolution(stream.transpose(1, 2)).transpose(1, 2)
        return found[:, : stream.shape[1]]


AHEAD = (
    AttendsToAll,
    SeesTheNext,
    SubtractsTheMean,
    ConvolvesBothWays,
    ReadsInWindows,
    ReadsBackwards,
)
BEHIND = (Base, ReadsForwards, AddsThePast, ConvolvesThePast)
