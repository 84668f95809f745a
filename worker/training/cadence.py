"""When the plan of a job asks for an evaluation: by cost, steps, geometric steps or seconds.

The same for a training state: by seconds or by steps. Pure. By seconds, the lead's clock decides;
otherwise the step number, so that every attempt agrees. Either way the ranks receive it with the
step's all-reduce.
"""

import math
from collections.abc import Callable
from typing import Final

from roadless.service.contract.job.evaluation import CheckpointsSpec, EvaluationSpec
from roadless.worker.position import Position

#: Whether to evaluate or save at the first position. The second: where it was last asked, or where
#: the evaluation after that ended.
Cadence = Callable[[Position, Position], bool]

#: Geometric steps are listed up to this one, which no job reaches.
_LAST_STEP: Final = 2**53
#: By share, the first evaluation is after this step: early, so that a fault in it shows soon.
FIRST_STEP: Final = 10
#: Evaluation passes that cost as much as training on one sample: three by arithmetic, two as
#: measured, since scores are computed too, and at another batch size.
_PASSES_OF_TRAINING: Final = 2


def build_cadence(spec: EvaluationSpec, *, batch_size: int, num_passes: int) -> Cadence:
    """Return the one cadence that the specification names.

    ``batch_size``: samples of a training step. ``num_passes``: of one evaluation; both count
    for the cadence by share.
    """
    if spec.share is not None:
        return by_share(steps_of_share(spec.share, batch_size=batch_size, num_passes=num_passes))
    if spec.every_seconds is not None:
        return by_seconds(spec.every_seconds)
    if spec.geometric is not None:
        return at_steps(geometric_steps(spec.geometric.first, factor=spec.geometric.factor))
    assert spec.every_steps is not None, "expected exactly one cadence, which the contract checks"
    return by_steps(spec.every_steps)


def build_state_cadence(spec: CheckpointsSpec) -> Cadence:
    """Return when the training state is saved."""
    if spec.state_every_seconds is not None:
        return by_seconds(spec.state_every_seconds)
    assert spec.state_every_steps is not None, "expected one of two, which the contract checks"
    return by_steps(spec.state_every_steps)


def steps_of_share(share: float, *, batch_size: int, num_passes: int) -> int:
    """Return after how many steps an evaluation is due, so that it costs at most ``share``.

    Rounded up to 1, 2 or 5 times a power of ten, for readability.
    """
    steps = num_passes / (_PASSES_OF_TRAINING * share * batch_size)
    power = int(10 ** max(0, math.ceil(math.log10(max(steps, 1.0))) - 1))
    return next(power * digit for digit in (1, 2, 5, 10, 20) if power * digit >= steps)


def by_share(every: int) -> Cadence:
    """After step :data:`FIRST_STEP`, and at each multiple of ``every`` steps."""
    return lambda now, _: now.step == FIRST_STEP or now.step % every == 0


def by_steps(every: int) -> Cadence:
    """At each multiple of ``every`` steps."""
    return lambda now, _: now.step % every == 0


def at_steps(steps: frozenset[int]) -> Cadence:
    """At each of these steps."""
    return lambda now, _: now.step in steps


def by_seconds(every: float) -> Cadence:
    """At the first step past each multiple of ``every`` seconds in RUNNING.

    Needs no state beyond the clock that the training state keeps. A multiple that passes during an
    evaluation is skipped, so that slow evaluations leave time to train.
    """
    return lambda now, since: now.wall_seconds // every > since.wall_seconds // every


def geometric_steps(first: int, *, factor: float) -> frozenset[int]:
    """Return ``first`` and all that follow, each ``factor`` times the one before.

    ``factor``: above 1. Rounded to whole steps, each at least one after the last.
    """
    steps, step = [], first
    while step <= _LAST_STEP:
        steps.append(step)
        # A product of two floats rounds the same on every machine; a power may not.
        step = max(step + 1, round(step * factor))
    return frozenset(steps)
