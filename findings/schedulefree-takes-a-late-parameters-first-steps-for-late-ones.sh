#!/usr/bin/env bash
# schedulefree 1.4.1 with torch 2.13.0: a parameter whose first gradient comes late (an expert, an unfrozen layer, a branch
# that begins to be used) takes first steps many times the learning rate. The bias correction counts the steps of the
# group, so the second moment of a tensor that has seen one gradient is taken for one of a thousand. torch's Adam counts
# the gradients of each tensor.
# Seen after 1000 steps of another parameter, first steps of z in units of lr: AdamWScheduleFree 25.2, 17.8, 14.5, 12.6;
# RAdamScheduleFree 16.2, 11.5, 9.4, 8.1; torch.optim.AdamW 1.0 each.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy schedulefree==1.4.1
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import sys

import schedulefree
import torch

RATE = 0.001


def first_steps(kind):
    torch.manual_seed(0)
    early, late = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = kind([early, late], lr=RATE, weight_decay=0)
    if kind is not torch.optim.AdamW:
        optimizer.train()
    moves = []
    for t in range(1004):
        early.grad = torch.randn(3)
        if t >= 1000:
            late.grad = torch.full((3,), 0.01)
        before = optimizer.state[late].get("z", late).detach().clone()
        optimizer.step()
        after = optimizer.state[late].get("z", late).detach()
        moves.append((after - before).abs().max().item() / RATE)
    return [round(move, 1) for move in moves[1000:]]


adam, radam = first_steps(schedulefree.AdamWScheduleFree), first_steps(schedulefree.RAdamScheduleFree)
control = first_steps(torch.optim.AdamW)
print("AdamWScheduleFree", adam, "RAdamScheduleFree", radam, "torch.optim.AdamW", control)
sys.exit(not (adam[0] > 20 and radam[0] > 10 and max(control) < 1.1))
PY
