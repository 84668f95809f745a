"""What the theory needs from a job, read in one transaction: its steps and its evaluations."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from sqlalchemy.orm import Session

from roadless.service.attempts.store import live_cutoffs
from roadless.service.contract.job.spec import JobSpec
from roadless.service.errors import Conflict
from roadless.service.jobs import store as jobs
from roadless.service.metrics import chunks
from roadless.service.metrics import store as metrics
from roadless.service.metrics.chunks import Points
from roadless.service.metrics.store import Cutoffs
from roadless.service.theory import store
from roadless.service.theory.steps import Blocks, Floats, Ints, Steps, blocks_of

GRAD_NORM, RATE = "grad.norm", "optimizer.lr"
#: Steps of a series in memory at once, and how far beyond them the end of a gap is searched.
WINDOW_STEPS = 500_000
LOOK_AHEAD_STEPS = 1_000


class TheoryUnavailable(Conflict):
    """The job has not logged what the bound needs."""

    code, title = "theory_unavailable", "No bound for this job"


@dataclass(frozen=True)
class Record:
    """A job as it was at one moment.

    ``evaluated`` and ``losses``: steps and finite losses of the eval curve, shape (n,).
    ``num_missing``: steps whose rate or norm was not logged and is interpolated linearly.
    """

    job_id: str
    spec: JobSpec
    blocks: Blocks
    largest_rate: float
    evaluated: Ints
    losses: Floats
    num_missing: int


def read(session: Session, job_id: str, project: str) -> Record:
    """Return the job's live points.

    Raises:
        NotFound: the project has no such job.
        TheoryUnavailable: no rate or no gradient norm was logged yet.
    """
    job = jobs.get(session, job_id, project)
    spec = JobSpec.model_validate(job.spec)
    reader = _Reader(session, job_id, live_cutoffs(session, job_id, project))
    num_steps = reader.num_steps()
    steps = _clipped(reader.steps(num_steps), spec.training.max_grad_norm)
    blocks = _with_a_bound(blocks_of(steps, num_steps=num_steps))
    evaluated, losses = store.losses(session, job_id, last_step=num_steps)
    return Record(
        job_id=job_id,
        spec=spec,
        blocks=blocks,
        largest_rate=reader.largest_rate,
        evaluated=np.array(evaluated, np.int64),
        losses=np.array(losses, np.float64),
        num_missing=reader.num_missing,
    )


def _clipped(parts: Iterable[Steps], max_grad_norm: float | None) -> Iterator[Steps]:
    """Norms are logged before clipping; the steps were taken after it."""
    for part in parts:
        norms = part.grad_norms
        yield Steps(part.eta, norms if max_grad_norm is None else np.minimum(norms, max_grad_norm))


def _with_a_bound(blocks: Blocks) -> Blocks:
    if not blocks.noise.any():
        raise TheoryUnavailable(
            f"expected a step with {RATE} and {GRAD_NORM} above 0, saw none in "
            f"{blocks.num_steps} steps"
        )
    return blocks


class _Reader:
    """The two series of a job, a window of steps at a time, with gaps filled."""

    def __init__(self, session: Session, job_id: str, cutoffs: Cutoffs) -> None:
        self._session = session
        self._job_id = job_id
        self._cutoffs = cutoffs
        self.largest_rate = 0.0
        self.num_missing = 0

    def num_steps(self) -> int:
        """Return up to which step both series reach."""
        reached = {name: self._reach(name) for name in (GRAD_NORM, RATE)}
        for name, last in reached.items():
            if not last:
                raise TheoryUnavailable(
                    f"expected logged points of {GRAD_NORM} and {RATE}, saw none of {name}"
                )
        return min(reached.values())

    def _reach(self, name: str) -> int:
        return store.last_step(self._session, self._job_id, name, cutoffs=self._cutoffs)

    def steps(self, num_steps: int) -> Iterator[Steps]:
        """Yield the steps 1 to ``num_steps`` in windows."""
        before = {RATE: chunks.EMPTY, GRAD_NORM: chunks.EMPTY}
        for first in range(1, num_steps + 1, WINDOW_STEPS):
            last = min(first + WINDOW_STEPS - 1, num_steps)
            known = {
                name: chunks.merge([part, self._finite(name, first, last + LOOK_AHEAD_STEPS)])
                for name, part in before.items()
            }
            yield self._window(np.arange(first, last + 1), known)
            before = {name: _last_until(part, last) for name, part in known.items()}

    def _finite(self, name: str, first: int, last: int) -> Points:
        found = metrics.series(
            self._session,
            job_id=self._job_id,
            name=name,
            cutoffs=self._cutoffs,
            x_min=first,
            x_max=last,
        )
        finite = np.isfinite(found.values)
        return Points(found.steps[finite], found.values[finite])

    def _window(self, steps: Ints, known: dict[str, Points]) -> Steps:
        for name, points in known.items():
            if not points.steps.size:
                raise TheoryUnavailable(
                    f"expected points of {name} among the steps {steps[0]} to {steps[-1]}, saw none"
                )
        rates, norms = known[RATE], known[GRAD_NORM]
        logged = np.isin(steps, rates.steps) & np.isin(steps, norms.steps)
        self.num_missing += int(np.count_nonzero(~logged))
        eta = np.interp(steps, rates.steps, rates.values)
        self.largest_rate = max(self.largest_rate, float(eta.max()))
        return Steps(eta, np.interp(steps, norms.steps, norms.values))


def _last_until(points: Points, step: int) -> Points:
    until = chunks.select(points, last=step)
    return Points(until.steps[-1:], until.values[-1:])
