"""How far training is, counted over the whole job: an attempt starts where the last one ended."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from roadless.service.contract.job.budget import BudgetSpec
from roadless.worker.early_stopping import NOTHING_JUDGED, EarlyStoppingRecord

#: The name of the early-stopping record in training states.
_RECORD_NAME = "goals"


class Position(NamedTuple):
    """Optimizer steps completed, and what they have consumed. A tuple: each step makes several."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0
    skips: int = 0  #: steps without an update, because loss or gradient norm was not finite
    skips_in_a_row: int = 0
    early_stopping: EarlyStoppingRecord = NOTHING_JUDGED  #: the lead's; the others need none

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Position":
        """Build the value from the JSON of a training state, of this or an earlier release."""
        counted = {name: value for name, value in record.items() if name != _RECORD_NAME}
        judged = EarlyStoppingRecord.from_record(record.get(_RECORD_NAME, {}))
        return cls(**counted, early_stopping=judged)

    def as_record(self) -> dict[str, Any]:
        """The value as JSON, for a training state."""
        record = self._asdict()
        del record["early_stopping"]
        return {**record, _RECORD_NAME: asdict(self.early_stopping)}

    def after_step(self, *, samples: int, tokens: int) -> "Position":
        """The position one step later; the stopwatch sets the times."""
        return self._replace(
            step=self.step + 1,
            samples=self.samples + samples,
            tokens=self.tokens + tokens,
        )

    def after_update(self, *, is_skipped: bool) -> "Position":
        """The position once it is known whether the step made an update."""
        if not is_skipped:
            return self._replace(skips_in_a_row=0) if self.skips_in_a_row else self
        return self._replace(skips=self.skips + 1, skips_in_a_row=self.skips_in_a_row + 1)


class Stopwatch:
    """Seconds in RUNNING, accumulated over attempts."""

    def __init__(self, start: Position, *, gpus: int) -> None:
        self._start = start
        self._gpus = gpus
        self._since = time.monotonic()

    def stamp(self, position: Position) -> Position:
        """The position with the seconds used until now."""
        seconds = time.monotonic() - self._since
        return position._replace(
            wall_seconds=self._start.wall_seconds + seconds,
            gpu_seconds=self._start.gpu_seconds + self._gpus * seconds,
        )


def is_used_up(budget: BudgetSpec | None, position: Position) -> bool:
    """Whether a limit of the budget is reached."""
    if budget is None:
        return False
    limits = (
        (budget.max_steps, position.step),
        (budget.max_samples, position.samples),
        (budget.max_tokens, position.tokens),
        (budget.max_seconds, position.wall_seconds),
        (budget.max_gpu_seconds, position.gpu_seconds),
    )
    return any(limit is not None and used >= limit for limit, used in limits)
