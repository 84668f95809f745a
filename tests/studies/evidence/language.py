"""Study (d): schedule-free AdamW against tuned schedules, on a byte-level language model.

Rates are chosen by mean held-out loss at the end on some seeds, and reported on others. A seed says
the first weights and the order of samples, so all methods see the same batches.
"""

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from tests.studies.evidence import schedules
from tests.studies.evidence.language_run import (
    Curve,
    LanguageMethod,
    LanguageRun,
    Size,
    corpus,
    num_parameters,
    train,
)
from tests.studies.evidence.record import Difference, Number, Record, Spread, Tuning
from tests.studies.evidence.search import Search

Say = Callable[[str], None]

SCHEDULE_FREE = (
    LanguageMethod("schedule-free, beta 0.9", beta=0.9),
    LanguageMethod("schedule-free, beta 0.98", beta=0.98),
)
RIVALS = tuple(
    LanguageMethod(name, schedule=name)
    for name in (schedules.WSD, schedules.LINEAR, schedules.COSINE)
)


@dataclass(frozen=True)
class Protocol:
    """How much is done."""

    size: Size
    tuning_seeds: tuple[int, ...]
    reporting_seeds: tuple[int, ...]
    methods: tuple[LanguageMethod, ...]
    first_grid_schedule_free: Search
    first_grid_schedules: Search

    def first_grid(self, method: LanguageMethod) -> Search:
        """Return where the search of this method begins."""
        if method.schedule is None:
            return self.first_grid_schedule_free
        return self.first_grid_schedules


class LanguageMethodResult(Record):
    """One method at its best rate."""

    name: str
    tuning: Tuning
    #: Held-out nats per byte, for each reporting seed after each of ``steps``.
    curves: list[list[Number]]
    final_loss: Spread
    #: This method's final loss less that of the schedule-free form that was better in tuning.
    loss_less_schedule_free: Difference


class LanguageResult(Record):
    """All methods on the same batches."""

    num_train_bytes: int
    corpus_sha256: str
    python_version: str
    num_parameters: int
    layers: int
    width: int
    context: int
    batch_size: int
    warmup_steps: int
    num_eval_samples: int
    num_tuning_seeds: int
    num_reporting_seeds: int
    #: Steps of the evaluations.
    steps: list[int]
    methods: list[LanguageMethodResult]


@dataclass(frozen=True)
class _Found:
    search: Search
    curves: list[Curve]

    @property
    def finals(self) -> list[float]:
        return [curve.losses[-1] for curve in self.curves]


def run(protocol: Protocol, *, executor: Executor, say: Say) -> tuple[LanguageResult, float]:
    """Tune and compare; return the result, and the CPU seconds of all runs."""
    searches, tuning_seconds = _searched(protocol, executor, say)
    curves = _reported(protocol, searches, executor, say)
    found = {name: _Found(searches[name], curves[name]) for name in searches}
    reporting_seconds = sum(curve.cpu_seconds for some in curves.values() for curve in some)
    return _result(protocol, found), tuning_seconds + reporting_seconds


def _searched(protocol: Protocol, executor: Executor, say: Say) -> tuple[dict[str, Search], float]:
    """Search all rates at once, so that no worker waits for one method's search to end."""
    by_name = {method.name: method for method in protocol.methods}
    searches = {name: protocol.first_grid(one) for name, one in by_name.items()}
    cpu_seconds = 0.0
    while any(search.missing for search in searches.values()):
        wanted = [(name, k) for name, search in searches.items() for k in search.missing]
        runs = [
            LanguageRun(by_name[name], searches[name].rate(k), seed, protocol.size)
            for name, k in wanted
            for seed in protocol.tuning_seeds
        ]
        curves = list(_trained(runs, executor, say))
        cpu_seconds += sum(curve.cpu_seconds for curve in curves)
        finals = np.reshape([curve.losses[-1] for curve in curves], (len(wanted), -1))
        means = dict(zip(wanted, finals.mean(1).tolist(), strict=True))
        searches = {
            name: search.told({k: means[name, k] for k in search.missing})
            for name, search in searches.items()
        }
    return searches, cpu_seconds


def _reported(
    protocol: Protocol, searches: Mapping[str, Search], executor: Executor, say: Say
) -> dict[str, list[Curve]]:
    """Train each method at its best rate with the seeds that the rate was not chosen on."""
    runs = [
        LanguageRun(one, searches[one.name].rate(searches[one.name].best), seed, protocol.size)
        for one in protocol.methods
        for seed in protocol.reporting_seeds
    ]
    curves: dict[str, list[Curve]] = {one.name: [] for one in protocol.methods}
    for done, curve in zip(runs, _trained(runs, executor, say), strict=True):
        curves[done.method.name].append(curve)
    return curves


def _trained(runs: list[LanguageRun], executor: Executor, say: Say) -> Iterator[Curve]:
    for done, curve in zip(runs, executor.map(train, runs), strict=True):
        say(
            f"{done.method.name}, rate {done.rate:g}, seed {done.seed}: "
            f"{curve.losses[-1]:.4f} nats per byte, {curve.cpu_seconds:.0f} CPU s"
        )
        yield curve


def _result(protocol: Protocol, found: Mapping[str, _Found]) -> LanguageResult:
    size, data = protocol.size, corpus(protocol.size)
    champion = found[_champion(protocol, found)].finals
    return LanguageResult(
        num_train_bytes=data.num_train_bytes,
        corpus_sha256=data.sha256,
        python_version=platform.python_version(),
        num_parameters=num_parameters(size),
        layers=size.layers,
        width=size.width,
        context=size.context,
        batch_size=size.batch_size,
        warmup_steps=size.warmup_steps,
        num_eval_samples=size.num_eval_samples,
        num_tuning_seeds=len(protocol.tuning_seeds),
        num_reporting_seeds=len(protocol.reporting_seeds),
        steps=size.evaluate_at,
        methods=[
            LanguageMethodResult(
                name=name,
                tuning=Tuning.of(one.search),
                curves=[list(curve.losses) for curve in one.curves],
                final_loss=Spread.of(one.finals),
                loss_less_schedule_free=Difference.of(one.finals, champion),
            )
            for name, one in found.items()
        ],
    )


def _champion(protocol: Protocol, found: Mapping[str, _Found]) -> str:
    """Return the schedule-free form that was best on the tuning seeds."""
    names = [one.name for one in protocol.methods if one.schedule is None]
    return min(names, key=lambda name: min(found[name].search.losses.values(), default=math.inf))
