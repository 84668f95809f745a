#!/usr/bin/env bash
# schedulefree 1.4.1 with torch 2.13.0: RAdamScheduleFree with beta2 <= 0.6 never moves a parameter, and says nothing.
# Its rectification needs rho_t > 4, but rho_t stays below 2 / (1 - beta2) - 1, which is 4 at beta2 = 0.6; until then the
# learning rate is 0 (silent_sgd_phase, the default). torch.optim.RAdam steps without rectification there, and trains.
# Seen after 500 steps towards 1 from 0: 0.0 at beta2 = 0.6, 0.5 and 0.1; 1.00005 at 0.7. torch: 1.0 at each of the three.
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


def trained(kind, beta2):
    point = torch.nn.Parameter(torch.zeros(3))
    optimizer = kind([point], lr=0.1, betas=(0.9, beta2))
    is_averaged = kind is not torch.optim.RAdam
    if is_averaged:
        optimizer.train()
    for _ in range(500):
        optimizer.zero_grad()
        (point - 1).square().sum().backward()
        optimizer.step()
    if is_averaged:
        optimizer.eval()
    return point[0].item()


small = (0.6, 0.5, 0.1)
rests = [trained(schedulefree.RAdamScheduleFree, beta2) for beta2 in small]
control = trained(schedulefree.RAdamScheduleFree, 0.7)
torchs = [trained(torch.optim.RAdam, beta2) for beta2 in small]
print("schedulefree at", small, rests, "at 0.7:", control, "torch at", small, torchs)
sys.exit(not (rests == [0.0] * 3 and abs(control - 1) < 0.01 and all(abs(p - 1) < 0.01 for p in torchs)))
PY
