"""From arrays to the answer of ``GET /v1/jobs/{job_id}/theory``. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from roadless.optim.theory.fitting import LossFit
from roadless.service.contract.job.schedules import has_horizon
from roadless.service.contract.resources import ProblemError
from roadless.service.contract.theory import analysis as contract
from roadless.service.contract.theory.analysis import Norms, Theory
from roadless.service.errors import Invalid
from roadless.service.theory import caveats
from roadless.service.theory.advice import RECENT_SHARE, Extension, Way, advice
from roadless.service.theory.analysis import Analysis, alternatives, analyse, best_factor
from roadless.service.theory.arithmetic import within_doubles
from roadless.service.theory.averaging import averaging_of
from roadless.service.theory.bounds import Terms
from roadless.service.theory.reading import Record, TheoryUnavailable
from roadless.service.theory.steps import Floats

#: Points on the way to an extension's end.
NUM_POINTS = 24

#: Losses of bounds; NaN where there is none.
Predict = Callable[[Floats], Floats]


def extension_resource(
    extension: Extension, *, made_for: int | None, predict: Predict
) -> contract.Extension:
    """Return all ways, the smallest bound first, and the way of the one advised."""
    ways = extension.ways()
    advised = next((way for way in ways if way.starts_at), None)
    return contract.Extension(
        from_step=extension.blocks.num_steps,
        made_for=made_for,
        to_step=extension.to_step,
        grad_norm=extension.grad_norm,
        advised=advised.name if advised else None,
        advice=advice(advised),
        continuations=[_continuation(way, predict) for way in ways],
        data=list(_way_there(advised or ways[0], extension, predict)),
    )


def _continuation(way: Way, predict: Predict) -> contract.Continuation:
    return contract.Continuation(
        name=way.name,
        starts_at=way.starts_at,
        base_lr=way.base_lr,
        bound=known(way.bound),
        predicted=known(predict(np.array(way.bound))),
        cooldown_len=way.cooldown_len,
        factor=way.factor,
    )


def _way_there(
    way: Way, extension: Extension, predict: Predict
) -> Iterator[contract.ExtensionPoint]:
    first = max(1, way.starts_at)
    steps = np.unique(np.linspace(first, extension.to_step, NUM_POINTS).astype(np.int64))
    bounds = way.terms(steps).at(extension.distance)
    for step, bound, loss in zip(steps, bounds, predict(bounds), strict=True):
        yield contract.ExtensionPoint(step=int(step), bound=known(bound), predicted=known(loss))


def known(value: float | Floats) -> float | None:
    """Return a number for the API: None for one that is not finite."""
    return float(value) if np.isfinite(value) else None


class Wanted(NamedTuple):
    """What is requested: D, how far an extension goes, and which gradient norms count.

    ``distance``: None: as the losses say. ``to_step``: None: twice as far.
    """

    distance: float | None = None
    to_step: int | None = None
    norms: Norms = "logged"


def theory_of(record: Record, wanted: Wanted) -> Theory:
    """Return what the theory says about a job.

    Raises:
        TheoryUnavailable: the job has no bound, or not within double precision.
        Invalid: ``wanted.to_step`` is no extension, or too far.
    """
    with within_doubles(TheoryUnavailable):
        return _theory_of(record, wanted)


def _theory_of(record: Record, wanted: Wanted) -> Theory:
    made_for = _made_for(record)
    end = _checked_end(wanted.to_step, reached=max(record.blocks.num_steps, made_for or 0))
    if wanted.norms == "even":
        record = replace(record, blocks=record.blocks.with_even_norms())
    averaging = averaging_of(record.spec.optimizer)
    analysis = analyse(record, averaging, distance=wanted.distance)
    blocks, found = record.blocks, analysis.distance
    extension = Extension(
        blocks=blocks,
        averaging=averaging,
        schedule=record.spec.schedule,
        made_for=made_for or blocks.num_steps,
        to_step=end,
        grad_norm=blocks.grad_norm(last_share=RECENT_SHARE),
        distance=found.value,
    )
    return Theory(
        job_id=record.job_id,
        num_steps=blocks.num_steps,
        bounded="last_iterate" if averaging is None else "average",
        norms=wanted.norms,
        distance=found.value,
        distance_source=found.source,
        base_lr=record.largest_rate,
        best_factor=best_factor(analysis.at_end, distance=found.value),
        grad_norm=blocks.grad_norm(),
        data=_points(analysis),
        fit=_fits(analysis),
        no_fit_reason=analysis.no_fit_reason,
        gap=_gap(analysis),
        alternatives=_alternatives(record, analysis),
        extension=extension_resource(extension, made_for=made_for, predict=analysis.predicted),
        caveats=[
            *caveats.of_spec(record.spec),
            *caveats.of_record(record),
            *caveats.of_analysis(record, analysis),
        ],
    )


def _made_for(record: Record) -> int | None:
    schedule, budget = record.spec.schedule, record.spec.budget
    if schedule is None or budget is None or not has_horizon(schedule):
        return None
    return budget.max_steps


def _checked_end(to_step: int | None, *, reached: int) -> int:
    if to_step is None:
        return 2 * reached
    if not reached < to_step <= contract.MAX_EXTENSION * reached:
        text = (
            f"expected more than {reached} steps and at most "
            f"{contract.MAX_EXTENSION * reached}, saw {to_step}"
        )
        raise Invalid(text, errors=(ProblemError(pointer="query:steps", message=text),))
    return to_step


# ---- the evaluations -----------------------------------------------------------------------------


def _points(analysis: Analysis) -> list[contract.TheoryPoint]:
    terms, D = analysis.terms, analysis.distance.value
    bounds = terms.at(D)
    predicted = analysis.predicted(bounds)
    return [
        contract.TheoryPoint(
            step=int(step),
            loss=float(loss),
            bound=known(bounds[i]),
            terms=_terms(terms, i, D=D),
            predicted=known(predicted[i]),
            gap=known(loss - predicted[i]),
        )
        for i, (step, loss) in enumerate(zip(analysis.steps, analysis.losses, strict=True))
    ]


def _terms(terms: Terms, i: int, *, D: float) -> contract.BoundTerms | None:
    if not np.isfinite(terms.distance[i]):
        return None
    return contract.BoundTerms(
        distance=float(D**2 * terms.distance[i]),
        noise=float(terms.noise[i]),
        last_iterate=float(terms.last[i]),
    )


def _fits(analysis: Analysis) -> contract.Fits | None:
    if analysis.fit is None:
        return None
    return contract.Fits(
        huber=_fit(analysis.fit.huber), least_squares=_fit(analysis.fit.least_squares)
    )


def _fit(found: LossFit) -> contract.BoundFit:
    return contract.BoundFit(
        offset=found.C,
        slope=found.M,
        r2=found.r2,
        median_relative_error=found.median_relative_error,
        num_points=found.n,
    )


def _gap(analysis: Analysis) -> contract.Gap | None:
    gaps = analysis.losses - analysis.predicted(analysis.terms.at(analysis.distance.value))
    known = np.flatnonzero(np.isfinite(gaps))
    if not known.size:
        return None
    largest = known[np.argmax(np.abs(gaps[known]))]
    return contract.Gap(
        last=float(gaps[known[-1]]),
        last_step=int(analysis.steps[known[-1]]),
        largest=float(gaps[largest]),
        largest_step=int(analysis.steps[largest]),
    )


def _alternatives(record: Record, analysis: Analysis) -> list[contract.Alternative]:
    return [
        contract.Alternative(
            schedule=one.schedule,
            base_lr=one.base_lr,
            relative_lr=one.base_lr / record.largest_rate,
            bound=one.bound,
            predicted=known(analysis.predicted(np.array(one.bound))),
        )
        for one in alternatives(record.blocks, distance=analysis.distance.value)
    ]
