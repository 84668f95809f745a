"""Two jobs, of one rank and of two, that train through a fault and must show no trace of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
from stack import curve_of, rank_pids, wait_for_end, wait_for_step, wait_until
from up_stack import UpStack

from roadless.service.client.client import Client
from roadless.service.contract.resources import Job
from roadless.service.contract.states import TERMINAL, Phase

#: Steps of the job with one rank, and of the one with two, of 0.03 s each: about 12 s and 45 s.
SHORT, LONG = (400, 300), (1500, 1100)
#: From where the fault begins.
BEGUN = (40, 30)

#: What each drill measured, printed at the end.
FIGURES: list[tuple[str, str]] = []
_CURVES: dict[tuple[int, ...], list[Any]] = {}


@dataclass(frozen=True)
class Pair:
    """Two jobs that train, and how far they were when the fault began."""

    ids: tuple[str, str]
    before: tuple[Job, Job]

    def ranks(self, index: int) -> list[int]:
        """Process ids of one of the jobs' ranks."""
        attempt = self.before[index].attempt
        assert attempt is not None
        return rank_pids(attempt.id)

    def fork_server(self) -> int:
        """Process id of what has forked the ranks; a node has another one on standby."""
        return psutil.Process(self.ranks(0)[0]).ppid()

    def agent(self) -> int:
        """Process id of the node agent that has started them."""
        return psutil.Process(self.fork_server()).ppid()


@dataclass(frozen=True)
class Outcome:
    """After a fault: seconds from its end until both jobs have a step more, and how they ended."""

    seconds: float
    ends: tuple[Job, Job]

    @property
    def fences(self) -> list[int]:
        return [job.attempt.fence for job in self.ends if job.attempt is not None]


#: Does the damage while both train, and mends it where it does not mend itself.
Fault = Callable[[Pair], object]


def spec(name: str, *, ranks: int, steps: int | None, **changes: Any) -> dict[str, Any]:
    """A job that lasts by its clock, on any machine, and whose curve follows from this alone."""
    return {
        "name": name,
        "model": {"kind": "entry_point", "factory": "paced_models:paced"},
        "data": {"kind": "builtin", "name": "digits"},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01, "warmup_steps": 20},
        "training": {"batch_size": 48, "seed": 3 + ranks},
        "parallelism": {"num_workers": ranks},
        "budget": None if steps is None else {"max_steps": steps},
        "evaluation": {"every_steps": 40, "batch_size": 512},
        "checkpoints": {"state_every_steps": 30},
        **changes,
    }


def submit(client: Client, steps: tuple[int, int], name: str, **changes: Any) -> tuple[str, str]:
    first, second = steps
    one = client.submit(spec(f"{name} 1", ranks=1, steps=first, **changes)).id
    two = client.submit(spec(f"{name} 2", ranks=2, steps=second, **changes)).id
    return one, two


def reference(up: UpStack, steps: tuple[int, int]) -> list[Any]:
    """Curves of the pair that nobody disturbs, found once in a session."""
    if steps not in _CURVES:
        with up.client() as client:
            ids = submit(client, steps, "reference")
            for job_id in ids:
                assert _end(up, job_id).phase is Phase.SUCCEEDED
            _CURVES[steps] = [curve_of(client, job_id) for job_id in ids]
    return _CURVES[steps]


def _end(up: UpStack, job_id: str) -> Job:
    with up.client() as client:
        wait_until(lambda: client.job(job_id).phase in TERMINAL, seconds=400)
        return wait_for_end(client, job_id)


def run(
    up: UpStack, name: str, fault: Fault, *, steps: tuple[int, int] = SHORT, **changes: Any
) -> Outcome:
    """Both must end well, with curves as if the fault had not been."""
    curves = reference(up, steps)
    with up.client() as client:
        ids = submit(client, steps, name, **changes)
        for job_id, step in zip(ids, BEGUN, strict=True):
            wait_for_step(client, job_id, step)
        pair = Pair(ids, (client.job(ids[0]), client.job(ids[1])))
    began = time.monotonic()
    note = fault(pair)
    taken = time.monotonic() - began
    outcome = Outcome(_recovered(up, pair), (_end(up, ids[0]), _end(up, ids[1])))
    measured = f"{taken:.1f} s, then {outcome.seconds:.1f} s, attempts {outcome.fences}"
    FIGURES.append((name, f"{measured}; {note}" if note else measured))
    reasons = [(job.reason, job.message) for job in outcome.ends]
    assert [job.phase for job in outcome.ends] == [Phase.SUCCEEDED] * 2, reasons
    with up.client() as client:
        assert [curve_of(client, job_id) for job_id in ids] == curves
    return outcome


def _recovered(up: UpStack, pair: Pair) -> float:
    began = time.monotonic()
    waiting = {job.id: job.progress.step for job in pair.before}

    def all_moved() -> bool:
        with up.client() as client:
            for job_id, step in list(waiting.items()):
                job = client.job(job_id)
                if job.progress.step > step and (
                    job.phase is Phase.RUNNING or job.phase in TERMINAL
                ):
                    del waiting[job_id]
        return not waiting

    wait_until(all_moved, seconds=300)
    return time.monotonic() - began
