#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: ProphetNetForCausalLM with several heads and at least two layers lets a later token
# change the logits of earlier positions. The relative positions of its predict stream are permuted and then viewed in an
# order that mixes heads and positions. The loss of such a model, and whatever compares causal models, is not what it says.
# Seen, float32, tokens before the changed one: 1e-4 of the largest logit; GPT-2 of the same size: exactly 0.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy transformers==5.23.0
cd "$folder"
HF_HOME="$folder/home" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, ProphetNetConfig, ProphetNetForCausalLM

CHANGED = 5


@torch.no_grad()
def seen_earlier(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    tokens = torch.randint(1, 60, (1, 16))
    others = tokens.clone()
    others[0, CHANGED] = 63
    a, b = model.eval()(tokens).logits, model(others).logits
    return ((a - b)[0, :CHANGED].abs().max() / a.abs().max()).item()


sizes = {"vocab_size": 64, "max_position_embeddings": 64}
heads = {"num_decoder_layers": 2, "num_decoder_attention_heads": 4, "hidden_size": 32, "decoder_ffn_dim": 64}
prophet = seen_earlier(ProphetNetForCausalLM(ProphetNetConfig(**sizes, **heads)))
gpt2 = seen_earlier(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)))
print("share of the largest logit by which an earlier one changes: ProphetNet", prophet, "GPT-2", gpt2)
sys.exit(not (prophet > 1e-6 and gpt2 == 0))
PY
