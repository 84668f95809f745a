"""Schedules by the names that a job gives them, for a given number of steps."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadless.optim.schedules.schedules import (
    ConstantSchedule,
    CosineSchedule,
    PiecewiseConstantSchedule,
    PolynomialBackwardSchedule,
    PolynomialCooldownSchedule,
    ScheduleBase,
    SqrtSchedule,
    WSDSchedule,
)


def _decay_after_warmup(
    decay_type: str,
    *,
    steps: int,
    base_lr: float,
    warmup_kwargs: Mapping[str, Any] | None,
    final_lr: float = 0.0,
) -> ScheduleBase:
    """`LinearSchedule` and `OneMinusSqrtSchedule`, over the steps left by a warmup."""
    num_warmup = warmup_kwargs["steps"] if warmup_kwargs else 0
    cooldown = {"steps": steps - num_warmup, "type": decay_type, "final_lr": final_lr}
    return PiecewiseConstantSchedule(
        steps, base_lr, cooldown_kwargs=cooldown, warmup_kwargs=warmup_kwargs
    )


_MAKES: dict[str, Callable[..., ScheduleBase]] = {
    "constant": ConstantSchedule,
    "wsd": WSDSchedule,
    "cosine": CosineSchedule,
    "linear": partial(_decay_after_warmup, "linear"),
    "one_minus_sqrt": partial(_decay_after_warmup, "sqrt"),
    "sqrt": SqrtSchedule,
    "piecewise_constant": PiecewiseConstantSchedule,
    "polynomial_backward": PolynomialBackwardSchedule,
    "polynomial_cooldown": PolynomialCooldownSchedule,
}
NAMES = tuple(_MAKES)


def named_schedule(
    name: str,
    *,
    steps: int,
    base_lr: float = 1.0,
    warmup_steps: int = 0,
    warmup_lr: float = 1e-10,
    **arguments: Any,
) -> ScheduleBase:
    """Return the schedule of ``steps`` training steps; its rates are ``.schedule[:steps]``.

    It is one step longer than the training, so that the last rate used is not the final zero.
    ``arguments``: those of its class. Raises ValueError for an unknown name, or for parts that do
    not fit into that few steps.
    """
    if name not in _MAKES:
        raise ValueError(f"expected a schedule among {', '.join(NAMES)}, saw {name!r}")
    warmup = {"steps": warmup_steps, "warmup_lr": warmup_lr} if warmup_steps else None
    return _MAKES[name](steps=steps + 1, base_lr=base_lr, warmup_kwargs=warmup, **arguments)


def rates(name: str, *, steps: int, base_lr: float = 1.0, **arguments: Any) -> NDArray[np.float64]:
    """Return the learning rates of steps 1 to ``steps``, float64, shape (steps,)."""
    made = named_schedule(name, steps=steps, base_lr=base_lr, **arguments)
    return np.asarray(made.schedule[:steps])
