#!/usr/bin/env bash
# torch 2.13.0, CPU: autocast keeps the bfloat16 copies that it makes of weights until the outermost context is left, and
# an optimizer's step does not drop them. With autocast around the whole loop instead of the forward pass every pass sees
# the first weights: the parameters move along the first gradient for ever, and the printed loss stays where it was.
# Seen, 50 steps of SGD on a linear problem: forward pass in autocast: last printed loss 0.0005, true loss 0.0005; whole
# loop in autocast: printed 3.99, true 72.5.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import contextlib
import sys

import torch


def losses(around_loop):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = torch.randn(64, 4)
    targets = inputs.sum(1, keepdim=True)
    whole, part = (contextlib.nullcontext() for _ in range(2))
    if around_loop:
        whole = torch.autocast("cpu", dtype=torch.bfloat16)
    with whole:
        for _ in range(50):
            optimizer.zero_grad()
            if not around_loop:
                part = torch.autocast("cpu", dtype=torch.bfloat16)
            with part:
                loss = (model(inputs).float() - targets).square().mean()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return loss.item(), (model(inputs) - targets).square().mean().item()


forward, whole = losses(around_loop=False), losses(around_loop=True)
print("printed and true loss: autocast around the forward pass", forward, "around the loop", whole)
sys.exit(not (max(forward) < 0.01 and min(whole) > 1))
PY
