#!/usr/bin/env bash
# torch 2.13.0: set_optimizer_state_dict with flatten_optimizer_state_dict loads nothing, without a word, into an optimizer
# that has taken no step if one of its parameters has a gradient: torch then makes no state to know the names by, and
# takes the names that it does not know for none. A run resumed after one backward pass continues with empty moments.
# Seen, two parameters, AdamW: 2 states loaded without gradients, 0 with them; without flattening 2 both times.
# Exits 0 while that is so, 1 once it is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import copy
import sys

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)


def num_loaded(is_flat, has_gradients):
    options = StateDictOptions(flatten_optimizer_state_dict=is_flat)
    old, new = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    first, second = torch.optim.AdamW(old.parameters()), torch.optim.AdamW(new.parameters())
    old(torch.ones(1, 3)).sum().backward()
    first.step()
    saved = copy.deepcopy(get_optimizer_state_dict(old, first, options=options))
    new.load_state_dict(old.state_dict())
    if has_gradients:
        new(torch.ones(1, 3)).sum().backward()
    set_optimizer_state_dict(new, second, saved, options=options)
    return sum(bool(state) for state in second.state.values())


seen = {(flat, given): num_loaded(flat, given) for flat in (True, False) for given in (False, True)}
for (flat, given), num in seen.items():
    print("flattened" if flat else "nested", "with gradients" if given else "without gradients", "states loaded:", num)
sys.exit(seen != {(True, False): 2, (True, True): 0, (False, False): 2, (False, True): 2})
PY
