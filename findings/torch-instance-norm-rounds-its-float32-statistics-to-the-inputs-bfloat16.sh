#!/usr/bin/env bash
# torch 2.13.0, CPU: InstanceNorm with running statistics and without weights (track_running_stats=True, affine=False)
# rounds its float32 running mean to bfloat16 at every step with bfloat16 inputs. A mean of 100.025 becomes 100.0, and small
# updates are lost for good. With affine=True it does not, nor does BatchNorm.
# Seen: running mean 100.0, 100.0 exactly; with affine=True and in BatchNorm 100.0225 and 100.0241.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - <<'PY'
import sys

import torch
from torch import nn


def mean_after(layer):
    torch.manual_seed(0)
    layer.running_mean.fill_(100.025)
    layer(torch.randn(4, 2, 8).bfloat16() * 0.1 + 100)
    assert layer.running_mean.dtype is torch.float32
    return layer.running_mean.tolist()


plain = mean_after(nn.InstanceNorm1d(2, track_running_stats=True))
affine = mean_after(nn.InstanceNorm1d(2, track_running_stats=True, affine=True))
batch = mean_after(nn.BatchNorm1d(2))
print("InstanceNorm", plain, "with affine", affine, "BatchNorm", batch)
sys.exit(not (plain == [100.0, 100.0] and all(100 < mean < 100.05 for mean in affine + batch)))
PY
