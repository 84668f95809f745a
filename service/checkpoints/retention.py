"""Which checkpoints stay. Pure.

Eval checkpoints: the newest ``keep_last``, the ``keep_best`` of lowest loss, those at a multiple of
``keep_every_steps``, and every one that a user asked for. Training states: the newest two, so that
one can be read while the next is written.
"""

from collections.abc import Iterable
from dataclasses import dataclass

STATES_KEPT = 2


@dataclass(frozen=True)
class Stored:
    """What retention needs to know of a checkpoint."""

    id: str
    step: int
    loss: float | None
    requested: bool


def superfluous_evals(
    stored: Iterable[Stored], *, keep_last: int, keep_best: int, keep_every_steps: int | None
) -> set[str]:
    """Ids of eval checkpoints to delete. ``keep_every_steps``: at least 1; None: no such rule."""
    every = list(stored)
    newest = sorted(every, key=lambda one: one.step, reverse=True)[:keep_last]
    scored = [one for one in every if one.loss is not None]
    best = sorted(scored, key=lambda one: (one.loss, one.step))[:keep_best]
    spaced = [one for one in every if keep_every_steps and one.step % keep_every_steps == 0]
    asked = [one for one in every if one.requested]
    return {one.id for one in every} - {one.id for one in (*newest, *best, *spaced, *asked)}


def superfluous_states(stored: Iterable[Stored]) -> set[str]:
    """Ids of training states to delete."""
    newest_first = sorted(stored, key=lambda one: one.step, reverse=True)
    return {one.id for one in newest_first[STATES_KEPT:]}
