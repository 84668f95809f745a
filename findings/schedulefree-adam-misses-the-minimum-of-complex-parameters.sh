#!/usr/bin/env bash
# schedulefree 1.4.1 with torch 2.13.0: Adam's second moment of a complex parameter is the square of the gradient instead of
# its squared length, so real and imaginary part disturb each other, and training ends elsewhere without a word.
# SGDScheduleFree, and torch's own Adam (which sees a complex tensor as a pair of reals), do not.
# Seen, minimum at 3+4j, 600 steps from 0: AdamWScheduleFree 4.8+9.3j, as a pair of reals 3.0+4.0j; RAdamScheduleFree 6.1+7.0j,
# as a pair 3.0+4.3j; SGDScheduleFree 3.0+4.0j both ways; torch.optim.AdamW the same bits both ways.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy schedulefree==1.4.1
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys

import schedulefree
import torch


def end(kind, is_pair):
    start = torch.zeros(1, dtype=torch.complex64)
    point = torch.nn.Parameter(torch.view_as_real(start).clone() if is_pair else start)
    optimizer = kind([point], lr=0.1)
    is_averaged = kind is not torch.optim.AdamW
    if is_averaged:
        optimizer.train()
    for _ in range(600):
        optimizer.zero_grad()
        value = torch.view_as_complex(point) if is_pair else point
        (value - (3 + 4j)).abs().square().sum().backward()
        optimizer.step()
    if is_averaged:
        optimizer.eval()
    return (torch.view_as_complex(point) if is_pair else point).item()


kinds = (schedulefree.AdamWScheduleFree, schedulefree.RAdamScheduleFree, schedulefree.SGDScheduleFree, torch.optim.AdamW)
apart = {kind.__name__: (end(kind, False), end(kind, True)) for kind in kinds}
for name, (one, pair) in apart.items():
    print(f"{name}: complex {one:.3f}, as a pair of reals {pair:.3f}")
far = {name: abs(one - pair) for name, (one, pair) in apart.items()}
wrong, right = min(far["AdamWScheduleFree"], far["RAdamScheduleFree"]), max(far["SGDScheduleFree"], far["AdamW"])
sys.exit(not (wrong > 1 and right < 0.01))
PY
