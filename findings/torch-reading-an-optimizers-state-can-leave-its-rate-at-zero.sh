#!/usr/bin/env bash
# torch 2.13.0: get_optimizer_state_dict (torch.distributed.checkpoint.state_dict) makes a missing state by one step at a
# learning rate of 0. Where that step raises, as one of LBFGS does, which needs a closure, the rates are never put back:
# whoever catches the error trains on without moving. With AdamW, whose step does not raise, the rate comes back.
# Seen: LBFGS raises TypeError ('NoneType' object is not callable), then lr is 0.0 and 20 steps by closure move nothing.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def after_reading(kind):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = kind(model.parameters(), lr=0.5)
    try:
        get_optimizer_state_dict(model, optimizer)
        raised = "nothing"
    except TypeError as error:
        raised = str(error)
    before = model.weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (model(torch.ones(1, 3)) - 1).square().sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    moved = (model.weight - before).abs().max().item()
    print(f"{kind.__name__}: raised {raised}; then lr {optimizer.param_groups[0]['lr']}, moved in 20 steps by {moved}")
    return optimizer.param_groups[0]["lr"], moved


lbfgs, adam = after_reading(torch.optim.LBFGS), after_reading(torch.optim.AdamW)
sys.exit(not (lbfgs == (0.0, 0.0) and adam[0] == 0.5 and adam[1] > 0))
PY
