"""Ways to make a run longer, as the API shows them. Pure."""

from collections.abc import Callable, Iterator

import numpy as np

from service.contract import theory as contract
from service.theory.advice import Extension, Way, advice
from service.theory.steps import Floats

#: Points of the way to an extension's end.
NUM_POINTS = 24

#: Losses of bounds; NaN where there is none to tell.
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
