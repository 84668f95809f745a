"""Which checkpoints stay. Pure: the service removes the others, and ranks need not save them.

Eval checkpoints: the newest ``keep_last``, the ``keep_best`` of lowest loss and those at a multiple
of ``keep_every_steps``, as long as they are younger than ``max_age_seconds``; the newest one and
those that are pinned at any age. Training states: the newest two, so that one can be read while the
next is written, and those that are pinned. What a later attempt has superseded is deleted, unless
it is pinned.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from roadless.service.contract.job.evaluation import CheckpointsSpec

STATES_KEPT = 2


@dataclass(frozen=True)
class Stored:
    """What retention needs to know of a checkpoint."""

    id: str
    step: int
    loss: float | None  #: null when not finite, and of a training state
    stored_at: datetime
    pinned: bool
    is_live: bool  #: no later attempt resumed from before it


def superfluous_evals(
    stored: Iterable[Stored], policy: CheckpointsSpec, *, now: datetime
) -> set[str]:
    """Ids of eval checkpoints to delete, of all that a job has."""
    every = list(stored)
    newest_first = sorted((one for one in every if one.is_live), key=_step, reverse=True)
    kept = _younger(_chosen(newest_first, policy), policy.max_age_seconds, now=now)
    return _others(every, [*kept, *newest_first[:1]])


def superfluous_states(stored: Iterable[Stored]) -> set[str]:
    """Ids of training states to delete, of all that a job has.

    One that is superseded failed to load. It stays until there are two others, and is tried last.
    """
    every = list(stored)
    newest_first = sorted(every, key=lambda one: (one.is_live, one.step), reverse=True)
    return _others(every, newest_first[:STATES_KEPT])


def _chosen(newest_first: list[Stored], policy: CheckpointsSpec) -> list[Stored]:
    scored = [one for one in newest_first if one.loss is not None]
    best = sorted(scored, key=lambda one: (one.loss, one.step))[: policy.keep_best]
    every = policy.keep_every_steps
    spaced = [one for one in newest_first if every is not None and one.step % every == 0]
    return [*newest_first[: policy.keep_last], *best, *spaced]


def _younger(chosen: list[Stored], seconds: float | None, *, now: datetime) -> list[Stored]:
    if seconds is None:
        return chosen
    return [one for one in chosen if now - one.stored_at <= timedelta(seconds=seconds)]


def _others(every: list[Stored], kept: list[Stored]) -> set[str]:
    """Ids of those that are neither kept nor pinned."""
    stays = {one.id for one in kept}
    return {one.id for one in every if not one.pinned and one.id not in stays}


def _step(one: Stored) -> int:
    return one.step
