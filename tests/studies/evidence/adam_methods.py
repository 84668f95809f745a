"""The Adam family of the convex studies, with the settings of the paper's convex problems.

Betas (0.9, 0.95), no weight decay, no warmup; arXiv 2405.15682, appendix on convex experiments.
"""

from functools import partial
from typing import Any

import torch

from roadless.optim import AdamWScheduleFree
from tests.studies.evidence.schedules import CONSTANT, COSINE, LINEAR, factors
from tests.studies.evidence.side_by_side import Groups, Method, PolyakAdamW

SCHEDULE_FREE = "schedule-free"
BETAS = (0.9, 0.95)


def adam_methods() -> list[Method]:
    """Return schedule-free first, then those it is compared with."""
    settings: dict[str, Any] = {"betas": BETAS, "weight_decay": 0.0}

    def adamw(groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, **settings)

    def polyak(groups: Groups) -> torch.optim.Optimizer:
        return PolyakAdamW(groups, **settings)

    def schedule_free(groups: Groups) -> torch.optim.Optimizer:
        return AdamWScheduleFree(groups, **settings)

    constant = partial(factors, CONSTANT)
    return [
        Method(SCHEDULE_FREE, schedule_free, constant),
        Method(LINEAR, adamw, partial(factors, LINEAR)),
        Method(COSINE, adamw, partial(factors, COSINE)),
        Method(CONSTANT, adamw, constant),
        Method("Polyak average", polyak, constant),
    ]
