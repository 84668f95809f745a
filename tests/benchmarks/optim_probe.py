"""One fresh process for ``make bench-optim``: the first step, later ones, and what memory stays.

Prints one JSON line. Arguments: the contender's name, and "big" (56M elements) or "small" (one
layer of a tenth of a million, which no backend is loaded for).
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from tests.benchmarks.optim_contenders import contenders, transformer_shapes

SMALL = [(300, 300), (300,), (300, 10), (10,)]
BYTES_IN_KIB = 1024
NUM_STEPS = 16


def peak_bytes() -> int:
    """Of this process; ``getrusage`` would begin with its parent's."""
    (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    return int(line.split()[1]) * BYTES_IN_KIB


def main() -> None:
    torch.set_num_threads(2)
    name, size = sys.argv[1:]
    shapes = transformer_shapes() if size == "big" else SMALL
    (contender,) = contenders(shapes, [name])
    gradients = [torch.randn(s) for s in shapes]
    for parameter, gradient in zip(contender.parameters, gradients, strict=True):
        parameter.grad = gradient
    parameter_bytes = sum(p.numel() * p.element_size() for p in contender.parameters)
    torch.ones(2**20).mul_(2)  # torch's own threads and caches are there
    before, seconds = peak_bytes(), []
    for _ in range(NUM_STEPS):
        started = time.perf_counter()
        contender.optimizer.step()
        seconds.append(time.perf_counter() - started)
    figures = {
        "first_step_seconds": round(seconds[0], 3),
        "later_step_seconds": round(statistics.median(seconds[2:]), 5),
        "added_peak_in_parameter_sizes": round((peak_bytes() - before) / parameter_bytes, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
