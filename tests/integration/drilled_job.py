"""The job that drills disturb, long enough for that, with few training states on its way."""

from typing import Any

STEPS = 160
SLOW_ENOUGH_TO_KILL = {"kind": "preset", "name": "convnet", "width": 48}


def spec_of(num_workers: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": f"drill with {num_workers}",
        "model": SLOW_ENOUGH_TO_KILL,
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 20},
        "training": {"batch_size": 48, "seed": 3},
        "parallelism": {"num_workers": num_workers},
        "budget": {"max_steps": STEPS},
        "evaluation": {"every_steps": 40, "batch_size": 128, "batchnorm_batches": 2},
        "checkpoints": {"state_every_steps": 30},
        **changes,
    }
