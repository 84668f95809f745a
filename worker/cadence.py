"""When the plan of a job asks for an evaluation: by steps, ever more rarely, or by seconds. Pure.

By steps and geometric, the number of the step decides, so that every attempt agrees. By seconds the
clock of the lead decides. Either way the ranks hear of it with the step's small sum.
"""

from collections.abc import Callable
from typing import Final

from service.contract.evaluation import EvaluationSpec
from worker.position import Position

#: Says whether to evaluate at the first position. The second: where it was asked before, or where
#: the evaluation that followed has ended.
Cadence = Callable[[Position, Position], bool]

#: Geometric steps are known up to here, which no job reaches.
_LAST_STEP: Final = 2**53


def build_cadence(spec: EvaluationSpec) -> Cadence:
    """Return the one cadence that the specification names."""
    if spec.every_seconds is not None:
        return by_seconds(spec.every_seconds)
    if spec.geometric is not None:
        return at_steps(geometric_steps(spec.geometric.first, factor=spec.geometric.factor))
    assert spec.every_steps is not None, "expected exactly one cadence, which the contract checks"
    return by_steps(spec.every_steps)


def by_steps(every: int) -> Cadence:
    """With each multiple of ``every`` steps."""
    return lambda now, _: now.step % every == 0


def at_steps(steps: frozenset[int]) -> Cadence:
    """With each of these steps."""
    return lambda now, _: now.step in steps


def by_seconds(every: float) -> Cadence:
    """With the first step past each multiple of ``every`` seconds in RUNNING.

    Needs no memory beside the clock that the training state keeps. A multiple that passes during an
    evaluation is left out, so that slow evaluations leave time to train.
    """
    return lambda now, since: now.wall_seconds // every > since.wall_seconds // every


def geometric_steps(first: int, *, factor: float) -> frozenset[int]:
    """Return ``first`` and all that follow, each ``factor`` times the one before.

    ``factor``: above 1. Rounded to whole steps, and at least one step on.
    """
    steps, step = [], first
    while step <= _LAST_STEP:
        steps.append(step)
        # One product of two floats, which rounds alike on every machine; a power may not.
        step = max(step + 1, round(step * factor))
    return frozenset(steps)
