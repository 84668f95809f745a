"""The vision transformer of Dosovitskiy et al., arXiv 2010.11929: pre-norm, learned positions.

Shape letters at the end of names: B samples, T patches with the class token, D width, H heads,
K width of a head.
"""

import torch
from torch import nn
from torch.nn import functional

from roadless.service.contract.job.models import VitPreset
from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.shapes import image_shape

_MLP_FACTOR = 4
_POSITION_STD = 0.02
_NORM_EPS = 1e-6


class Vit(nn.Module):
    """Input (B, channels, height, width), both sides multiples of the spec's patch."""

    def __init__(self, spec: VitPreset, *, data: Description) -> None:
        super().__init__()
        channels, height, width = image_shape(data, model=spec.name)
        if height % spec.patch or width % spec.patch:
            raise ModelInvalid(
                f"expected height and width to be multiples of patch = {spec.patch} for "
                f"{spec.name}, saw {height}x{width}"
            )
        num_patches = (height // spec.patch) * (width // spec.patch)
        self.patches = nn.Conv2d(channels, spec.width, spec.patch, stride=spec.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.positions = nn.Parameter(torch.empty(1, num_patches + 1, spec.width))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width, eps=_NORM_EPS)
        self.head = nn.Linear(spec.width, data.num_outputs)
        self._initialise()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits or predictions of shape (B, outputs), read from the class token."""
        patches_BTD = self.patches(inputs).flatten(2).transpose(1, 2)
        class_BTD = self.class_token.expand(len(inputs), -1, -1)
        stream_BTD = torch.cat([class_BTD, patches_BTD], dim=1) + self.positions
        for block in self.blocks:
            stream_BTD = block(stream_BTD)
        outputs: torch.Tensor = self.head(self.norm(stream_BTD[:, 0]))
        return outputs

    def _initialise(self) -> None:
        """Preserve variance through each matrix; the head starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        fan_in = self.patches.weight[0].numel()
        nn.init.trunc_normal_(self.patches.weight, std=fan_in**-0.5)
        assert self.patches.bias is not None
        nn.init.zeros_(self.patches.bias)
        nn.init.normal_(self.positions, std=_POSITION_STD)
        nn.init.zeros_(self.head.weight)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to the stream."""

    def __init__(self, spec: VitPreset) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(spec.width, eps=_NORM_EPS)
        self.attention = Attention(spec)
        self.mlp_norm = nn.LayerNorm(spec.width, eps=_NORM_EPS)
        self.up = nn.Linear(spec.width, _MLP_FACTOR * spec.width)
        self.down = nn.Linear(_MLP_FACTOR * spec.width, spec.width)

    def forward(self, stream_BTD: torch.Tensor) -> torch.Tensor:
        """Return the stream with this block's two contributions."""
        stream_BTD = stream_BTD + self.attention(self.attention_norm(stream_BTD))
        mlp_BTD: torch.Tensor = self.down(functional.gelu(self.up(self.mlp_norm(stream_BTD))))
        return stream_BTD + mlp_BTD


class Attention(nn.Module):
    """Self-attention over ``heads`` heads, every patch to every patch."""

    def __init__(self, spec: VitPreset) -> None:
        super().__init__()
        self.num_heads = spec.heads
        self.queries_keys_values = nn.Linear(spec.width, 3 * spec.width)
        self.project = nn.Linear(spec.width, spec.width)

    def forward(self, stream_BTD: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D): for each patch a mix of the values of all."""
        fused = self.queries_keys_values(stream_BTD).unflatten(-1, (3, self.num_heads, -1))
        q_BHTK, k_BHTK, v_BHTK = fused.permute(2, 0, 3, 1, 4)
        mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK)
        mixed_BTD: torch.Tensor = self.project(mixed_BHTK.transpose(1, 2).flatten(2))
        return mixed_BTD
