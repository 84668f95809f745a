"""Which eval checkpoints need not wait for their upload, since the job would not keep them. Pure.

While the service is away they would fill the disk, and be deleted once they arrive: what is
superfluous among those that this rank knows is superfluous among all that there are.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from service.contract.evaluation import CheckpointsSpec
from service.contract.retention import Stored, superfluous_evals

#: Age is for the service to judge: here nothing grows old.
_NOW = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An eval checkpoint that is announced, or will be. ``loss``: None when not known yet.

    ``is_pinned``: a user has asked for it. ``has_verdict``: its files were looked at.
    """

    id: str
    step: int
    loss: float | None
    is_pinned: bool
    has_verdict: bool


def superfluous(known: Iterable[Waiting], policy: CheckpointsSpec) -> set[str]:
    """Return the ids of those that need not wait.

    One that was looked at goes for others that were: of the rest nobody knows whether they will be
    listed.
    """
    every = list(known)
    sure = [one for one in every if one.has_verdict]
    unsure = {one.id for one in every if not one.has_verdict}
    return _drop(sure, policy) | (_drop(every, policy) & unsure)


def _drop(every: Iterable[Waiting], policy: CheckpointsSpec) -> set[str]:
    return superfluous_evals([_stored(one) for one in every], policy, now=_NOW)


def _stored(one: Waiting) -> Stored:
    is_finite = one.loss is not None and math.isfinite(one.loss)
    return Stored(
        id=one.id,
        step=one.step,
        loss=one.loss if is_finite else None,
        stored_at=_NOW,
        pinned=one.is_pinned,
        is_live=True,
    )
