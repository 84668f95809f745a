"""How a job's optimizer weighs its steps in the average x, from its specification. Pure."""

from typing import NamedTuple

from roadless.service.contract.job.optimizers import (
    AdamCScheduleFreePlusSpec,
    FirstOrderSpec,
    ForeachSOAPSpec,
    OptimizerSpec,
    PaLMForeachSOAPSpec,
    PrecondScheduleForeachSOAPSpec,
    SOAPSpec,
)


class Averaging(NamedTuple):
    """Step t counts as t^r * (largest rate so far)^power.

    In the first ``skipped`` steps x is z: what is averaged, and bounded, begins there.
    """

    r: float
    power: float
    skipped: int = 0


def averaging_of(spec: OptimizerSpec) -> Averaging | None:
    """Return how the optimizer averages; None when its result is the last iterate."""
    match spec:
        case SOAPSpec(schedule_free=False) | ForeachSOAPSpec() | PrecondScheduleForeachSOAPSpec():
            return None
        case FirstOrderSpec() | PaLMForeachSOAPSpec():
            return None
        case AdamCScheduleFreePlusSpec():
            return Averaging(spec.r, spec.weight_lr_power, skipped=spec.c_warmup)
        case _:
            return Averaging(spec.r, spec.weight_lr_power)
