"""A decoder-only transformer: pre-norm, RMS norm, rotary positions, no biases.

Shape letters at the end of names: B samples, T tokens, D width, H heads, K width of a head.
"""

import torch
from torch import nn
from torch.nn import functional

from roadless.service.contract.job.models import GptPreset
from roadless.worker.data.base import Description
from roadless.worker.model.shapes import require_tokens

ROTARY_BASE = 10_000.0
MLP_FACTOR = 4

#: Small next to log 256, so that the first prediction is almost uniform; larger learns faster.
_FIRST_LOGIT = 4.0


class Gpt(nn.Module):
    """Input (B, T) token ids, T at most the spec's context.

    A tied head is the embedding: fewer weights, and a lower loss in our trials. Rows of embedding
    and head are padded to a multiple; the logits are cut to the vocabulary.
    """

    #: Rotary tables (T, K); not part of the state, since the spec determines them.
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, spec: GptPreset, *, data: Description) -> None:
        super().__init__()
        require_tokens(data, context=spec.context, model=spec.name)
        self.num_tokens = data.num_classes
        num_rows = -(-data.num_classes // spec.vocabulary_multiple) * spec.vocabulary_multiple
        self.embedding = nn.Embedding(num_rows, spec.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = nn.RMSNorm(spec.width)
        self.head = None if spec.tied_head else nn.Linear(spec.width, num_rows, bias=False)
        cos_TK, sin_TK = _rotary_tables(spec.context, width=spec.width // spec.heads)
        self.register_buffer("cos", cos_TK, persistent=False)
        self.register_buffer("sin", sin_TK, persistent=False)
        self._initialise()

    def forward(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (B, T, vocabulary): at each position, for the next token."""
        length = inputs_BT.shape[1]
        cos_TK, sin_TK = self.cos[:length], self.sin[:length]
        stream_BTD = self.embedding(inputs_BT)
        for block in self.blocks:
            stream_BTD = block(stream_BTD, cos_TK, sin_TK)
        head = self.embedding if self.head is None else self.head
        return functional.linear(self.norm(stream_BTD), head.weight)[..., : self.num_tokens]

    def _initialise(self) -> None:
        """Preserve variance through each matrix; blocks and an untied head add nothing at first."""
        for name, parameter in self.named_parameters():
            if name.endswith(("project.weight", "down.weight", "head.weight")):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        # As a tied head it gives each token's own logit about width * std.
        nn.init.normal_(self.embedding.weight, std=_FIRST_LOGIT / self.embedding.embedding_dim)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to the stream."""

    def __init__(self, spec: GptPreset) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(spec.width)
        self.attention = Attention(spec)
        self.mlp_norm = nn.RMSNorm(spec.width)
        self.up = nn.Linear(spec.width, MLP_FACTOR * spec.width, bias=False)
        self.down = nn.Linear(MLP_FACTOR * spec.width, spec.width, bias=False)

    def forward(
        self, stream_BTD: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return the stream with this block's two contributions."""
        stream_BTD = stream_BTD + self.attention(self.attention_norm(stream_BTD), cos_TK, sin_TK)
        mlp_BTD: torch.Tensor = self.down(functional.gelu(self.up(self.mlp_norm(stream_BTD))))
        return stream_BTD + mlp_BTD


class Attention(nn.Module):
    """Causal self-attention over ``heads`` heads."""

    def __init__(self, spec: GptPreset) -> None:
        super().__init__()
        self.num_heads = spec.heads
        self.queries_keys_values = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.project = nn.Linear(spec.width, spec.width, bias=False)

    def forward(
        self, stream_BTD: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return (B, T, D): for each token a mix of its own value and those before it."""
        fused = self.queries_keys_values(stream_BTD).unflatten(-1, (3, self.num_heads, -1))
        q_BHTK, k_BHTK, v_BHTK = fused.permute(2, 0, 3, 1, 4)
        mixed_BHTK = functional.scaled_dot_product_attention(
            _rotated(q_BHTK, cos_TK, sin_TK),
            _rotated(k_BHTK, cos_TK, sin_TK),
            v_BHTK,
            is_causal=True,
        )
        mixed_BTD: torch.Tensor = self.project(mixed_BHTK.transpose(1, 2).flatten(2))
        return mixed_BTD


def _rotary_tables(num_tokens: int, *, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines (T, K) of position times frequency; see arXiv 2104.09864."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.arange(num_tokens)[:, None] * ROTARY_BASE**-exponents
    doubled = torch.cat([angles, angles], dim=-1)
    return doubled.cos().float(), doubled.sin().float()


def _rotated(heads_BHTK: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    first, second = heads_BHTK.chunk(2, dim=-1)
    return heads_BHTK * cos_TK + torch.cat([-second, first], dim=-1) * sin_TK
