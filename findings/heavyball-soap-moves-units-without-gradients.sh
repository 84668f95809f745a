#!/usr/bin/env bash
# heavyball 3.2.1 with torch 2.13.0, CPU, float32: SOAP moves rows whose gradient is exactly 0, and tears apart rows that
# start alike and always get the same gradient. Its AdamW does neither. Rotated into an eigenbasis, what no gradient has
# is rounding noise, and noise over its own root is a full step.
# Seen: of a 8 x 6 weight three dead rows move by 0.16 where all move by 0.37; twins end 0.58 apart after moving by 0.52.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 heavyball==3.2.1
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import sys

import heavyball
import torch

heavyball.utils.compile_mode = None


def moves(kind, gradient_of):
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(8, 6))
    optimizer = kind([weight], lr=0.01, weight_decay=0)
    for _ in range(30):
        weight.grad = gradient_of(generator)
        optimizer.step()
    return weight.detach() - 1


def twins(generator):
    half = torch.randn(4, 6, generator=generator)
    return torch.cat([half, half])


def dead(generator):
    gradient = torch.randn(8, 6, generator=generator)
    gradient[[1, 4, 5]] = 0
    return gradient


seen = {}
for kind in (heavyball.SOAP, heavyball.AdamW):
    apart, resting = moves(kind, twins), moves(kind, dead)
    seen[kind.__name__] = (
        float((apart[:4] - apart[4:]).norm() / apart.norm()),
        float(resting[[1, 4, 5]].norm() / resting.norm()),
    )
    print(kind.__name__, "twins apart, dead rows moved, as shares of all that moved:", seen[kind.__name__])
soap, adam = seen["SOAP"], seen["AdamW"]
sys.exit(not (min(soap) > 0.05 and adam == (0.0, 0.0)))
PY
