"""Jobs with the numbers that the theory reads, played by the test."""

import math
from typing import Any

from played import Rank, Service

from roadless.optim.schedules.by_name import rates

NUM_STEPS, EVERY, RATE = 120, 10, 0.05
PER_REPORT = 500

SPEC: dict[str, Any] = {
    "name": "theory",
    "model": {"kind": "preset", "name": "mlp", "hidden": []},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "sgd_schedulefree", "lr": RATE},
    "training": {"batch_size": 64},
    "evaluation": {"every_steps": EVERY},
}
LAST_ITERATE: dict[str, Any] = {"optimizer": {"name": "adamw", "lr": RATE}}
WITH_WSD: dict[str, Any] = LAST_ITERATE | {
    "schedule": {"name": "wsd"},
    "budget": {"max_steps": NUM_STEPS},
}


def grad_norm(step: int) -> float:
    return 1 + 2 * math.exp(-step / 30) + 0.1 * math.sin(step)


def loss_at(step: int) -> float:
    """A loss that falls as the bound of some D does, with a wobble."""
    return 0.3 + 10 / step**0.8 + 0.01 * math.sin(3 * step)


def rate_of(spec: dict[str, Any]) -> Any:
    """The rate of each step of a played job, by step from 1."""
    if "schedule" not in spec:
        return lambda step: RATE
    made = rates(spec["schedule"]["name"], steps=spec["budget"]["max_steps"], base_lr=RATE)
    return lambda step: float(made[step - 1])


def step_event(step: int, **values: float) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "samples": 64 * step,
        "tokens": 0,
        "wall_seconds": step / 10,
        "gpu_seconds": 0,
        "values": {
            "train.loss": 1.0,
            **{name.replace("_", ".", 1): x for name, x in values.items()},
        },
    }


def eval_event(step: int) -> dict[str, Any]:
    position = step_event(step)
    del position["values"]
    return position | {"kind": "eval", "loss": loss_at(step), "metrics": {}}


def train(rank: Rank, rate: Any, first: int, last: int, *, evals: Any = None) -> None:
    """Report the steps first to last, and an evaluation at each of ``evals``."""
    steps = [
        step_event(step, grad_norm=grad_norm(step), optimizer_lr=rate(step))
        for step in range(first, last + 1)
    ]
    evaluated = range(-(-first // EVERY) * EVERY, last + 1, EVERY) if evals is None else evals
    events = steps + [eval_event(step) for step in evaluated]
    for start in range(0, len(events), PER_REPORT):
        answer = rank.report(*events[start : start + PER_REPORT])
        assert answer.status_code == 200, answer.text


def trained(service: Service, steps: int = NUM_STEPS, **changes: Any) -> tuple[str, Rank]:
    """A job that has done so many steps."""
    spec = SPEC | changes
    job = service.submit(spec)
    rank = service.claim()
    service.sync(alive=[rank.assignment["attempt_id"]], node={"free_cpus": 2})
    train(rank, rate_of(spec), 1, steps)
    return job, rank
