"""Folders of the transformers library for models trained here: written, and loaded as users do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ArceeConfig, ArceeForCausalLM
from transformers.utils import logging as transformers_logging

from roadless.service.contract.job.models import GptPreset
from roadless.worker.model.gpt import MLP_FACTOR, ROTARY_BASE, Block, Gpt
from roadless.worker.model.huggingface.adapter import TransformersAdapter

transformers_logging.disable_progress_bar()


def load_folder(folder: Path, *, auto_class: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the model that ``from_pretrained`` loads, in float32: from inputs to logits."""
    loader: Any = getattr(transformers, auto_class)
    model = loader.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
    )
    return TransformersAdapter(model.eval(), companions={})


def write_gpt(model: Gpt, folder: Path, *, spec: GptPreset) -> None:
    """Write the preset as an Arcee model, whose layers are the same.

    Its rotary angles are computed in float32, ours in float64; it also multiplies by the three
    attention matrices one by one, whose sums a library may order differently. Nothing else differs.
    Rows of the embedding beyond the vocabulary, which are there for speed, are left out.
    """
    with torch.device("meta"):
        written = ArceeForCausalLM(_config(model, spec))
    written.save_pretrained(folder, state_dict=_weights(model))


def _config(model: Gpt, spec: GptPreset) -> ArceeConfig:
    return ArceeConfig(
        vocab_size=model.num_tokens,
        hidden_size=spec.width,
        intermediate_size=MLP_FACTOR * spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        hidden_act="gelu",
        max_position_embeddings=spec.context,
        rms_norm_eps=model.norm.eps or torch.finfo(torch.float32).eps,  # None: as torch has it
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        tie_word_embeddings=spec.tied_head,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype="float32",
    )


def _weights(model: Gpt) -> dict[str, torch.Tensor]:
    weights = {
        "model.embed_tokens.weight": model.embedding.weight[: model.num_tokens],
        "model.norm.weight": model.norm.weight,
    }
    if model.head is not None:
        weights["lm_head.weight"] = model.head.weight[: model.num_tokens]
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        for name, tensor in _of_block(block).items():
            weights[f"model.layers.{index}.{name}.weight"] = tensor
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def _of_block(block: Block) -> dict[str, torch.Tensor]:
    queries, keys, values = block.attention.queries_keys_values.weight.chunk(3)
    return {
        "input_layernorm": block.attention_norm.weight,
        "self_attn.q_proj": queries,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": values,
        "self_attn.o_proj": block.attention.project.weight,
        "post_attention_layernorm": block.mlp_norm.weight,
        "mlp.up_proj": block.up.weight,
        "mlp.down_proj": block.down.weight,
    }
