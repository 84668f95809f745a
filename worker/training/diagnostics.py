"""Diagnostics of schedule-free training: the distance of x and z, the weight of a step, hints.

Cheap, read-only, and the same on every rank. What a hint means, and where its thresholds come from:
docs/choosing.md.
"""

import statistics
from collections.abc import Iterator

import torch

from roadless.optim.core.positions import Group, TwoPositions
from roadless.optim.numerics.sharding import whole
from roadless.service.contract.reports.events import Notice

#: A loss at y below the loss at x by more than this share of it, in this many evaluations in a row.
Y_BETTER_BY = 0.05
Y_BETTER_EVALUATIONS = 3
#: The first steps of a job, which warmup is judged by, and how many of them are its start.
WARMUP_STEPS = 200
_START_STEPS = 20
#: Largest gradient norm of the start, as a multiple of the later median.
LARGE_NORM = 10.0
#: Mean loss of the start's second half, as a multiple of that of its first half.
RISING_LOSS = 1.1


def diagnostics(optimizer: TwoPositions) -> dict[str, float]:
    """Return the metrics of an optimizer whose parameters hold x; {} if nothing is averaged.

    ``schedulefree.distance``: the 2-norm of x - z over all parameters. ``schedulefree.weight``: c,
    the share of the last step in x, for the first group. Every rank calls this.
    """
    distances = _distances(optimizer)
    if not distances:
        return {}
    distance = float(whole(torch.linalg.vector_norm(torch.stack(distances))))
    weight = _weight(optimizer.param_groups[0])
    of_weight = {} if weight is None else {"schedulefree.weight": weight}
    return {"schedulefree.distance": distance, **of_weight}


def _distances(optimizer: TwoPositions) -> list[torch.Tensor]:
    pairs = [
        (parameter.detach(), optimizer.state[parameter]["z"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if "z" in optimizer.state.get(parameter, {})
    ]
    return [torch.linalg.vector_norm(x.float() - z.float()) for x, z in pairs]


def _weight(group: Group) -> float | None:
    """c of the previous step, from the counters that it left
    (``roadless.optim.averaging.advance``)."""
    prefix = "sf_" if "sf_k" in group else ""
    names = [f"{prefix}{name}" for name in ("k", "r", "weight_lr_power", "lr_max", "weight_sum")]
    if any(name not in group for name in names):
        return None
    k, r, power, lr_max, weight_sum = (float(group[name]) for name in names)
    return float(k**r * lr_max**power / weight_sum) if weight_sum else None


class LagHint:
    """Warns once that the average lags behind the training point."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._is_said = False

    def after(self, *, loss_at_x: float, loss_at_y: float) -> Notice | None:
        """Take in one evaluation; return the hint once, when it applies."""
        is_better = loss_at_x - loss_at_y > Y_BETTER_BY * abs(loss_at_x)
        self._in_a_row = self._in_a_row + 1 if is_better else 0
        if self._is_said or self._in_a_row < Y_BETTER_EVALUATIONS:
            return None
        self._is_said = True
        message = (
            f"the training point y was better than the average x by more than {Y_BETTER_BY:.0%} in "
            f"{Y_BETTER_EVALUATIONS} evaluations in a row (last {loss_at_y:.6g} and "
            f"{loss_at_x:.6g}): the average lags, or beta does not suit; see docs/choosing.md"
        )
        return Notice(code="hint.average", message=message)


class WarmupHint:
    """Warns once, after a job's first steps, that its warmup looks too short."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []

    def after(self, step: int, *, loss: float, grad_norm: float) -> Notice | None:
        """Take in one step; return the hint if it applies. Needs all steps from the first."""
        if step > WARMUP_STEPS or step != len(self._seen) + 1:
            return None
        self._seen.append((loss, grad_norm))
        if step < WARMUP_STEPS:
            return None
        said = " and ".join(_signs_of_short_warmup(self._seen))
        if not said:
            return None
        message = f"{said}: the warmup may be too short; see docs/choosing.md"
        return Notice(code="hint.warmup", message=message)


def _signs_of_short_warmup(seen: list[tuple[float, float]]) -> Iterator[str]:
    losses, norms = ([one[column] for one in seen] for column in range(2))
    largest, later = max(norms[:_START_STEPS]), statistics.median(norms[_START_STEPS:])
    if largest > LARGE_NORM * later:
        yield (
            f"the largest gradient norm of the first {_START_STEPS} steps was {largest:.3g}, the "
            f"median of the next {len(norms) - _START_STEPS} {later:.3g}"
        )
    half = _START_STEPS // 2
    first, second = statistics.fmean(losses[:half]), statistics.fmean(losses[half:_START_STEPS])
    if second > first + (RISING_LOSS - 1) * abs(first):
        yield f"the loss rose from {first:.4g} to {second:.4g} in the first {_START_STEPS} steps"
