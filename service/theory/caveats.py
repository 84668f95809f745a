"""What the theory does not cover in a job: stable codes with a sentence each. Pure."""

from collections.abc import Iterator

from roadless.optim.theory.fitting import LossFit
from roadless.service.contract.job.models import MlpPreset
from roadless.service.contract.job.optimizers import (
    AdamCScheduleFreePlusSpec,
    AdamWScheduleFreeSpec,
    OptimizerSpec,
    ScheduleFreeWrapperSpec,
    SFPaLMForeachSOAPSpec,
    SGDScheduleFreeSpec,
    SOAPSpec,
)
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.theory.analysis import Caveat, CaveatCode
from roadless.service.theory.advice import RECENT_SHARE
from roadless.service.theory.analysis import Analysis
from roadless.service.theory.averaging import averaging_of
from roadless.service.theory.reading import GRAD_NORM, RATE, Record

#: With fewer evaluations than this a single one can turn the fit.
FEW_POINTS = 10
#: Above 1 by less than this, a slope is 1.
SLOPE_SLACK = 0.01
#: A line that half of the losses are further off is called poor, relative to them.
GOOD_ERROR = 0.05


def of_spec(spec: JobSpec) -> Iterator[Caveat]:
    """Yield what follows from the specification alone."""
    if not (isinstance(spec.model, MlpPreset) and not spec.model.hidden):
        yield _caveat(
            CaveatCode.NON_CONVEX,
            "the bound is proved for convex losses only; this one is not convex",
        )
    if not _steps_along_the_gradient(spec.optimizer):
        yield _caveat(
            CaveatCode.ADAPTIVE_OPTIMIZER,
            f"the bound is proved for steps along the gradient; {spec.optimizer.name} rescales "
            f"them, and {GRAD_NORM} is the norm before rescaling: compare norms=even",
        )
    if _has_momentum(spec.optimizer):
        yield _caveat(CaveatCode.MOMENTUM, "the bound is proved for steps without momentum")
    if _decays_weights(spec.optimizer):
        yield _caveat(CaveatCode.WEIGHT_DECAY, "the bound ignores weight decay")
    if spec.training.max_grad_norm is not None or _clips_itself(spec.optimizer):
        yield _caveat(
            CaveatCode.CLIPPING,
            "a clipped gradient is not a gradient of the loss; norms are used after clipping to "
            "training.max_grad_norm",
        )


def of_record(record: Record) -> Iterator[Caveat]:
    """Yield what follows from how the steps were logged and summed."""
    blocks = record.blocks
    if record.num_missing:
        yield _caveat(
            CaveatCode.INTERPOLATED,
            f"{RATE} or {GRAD_NORM} was not logged at {record.num_missing} of {blocks.num_steps} "
            "steps; these are interpolated linearly",
        )
    if blocks.size > 1:
        yield _caveat(
            CaveatCode.COARSENED,
            f"{blocks.num_steps} steps are grouped in blocks of {blocks.size}, within which "
            "rates and norms count as constant",
        )


def of_analysis(record: Record, analysis: Analysis) -> Iterator[Caveat]:
    """Yield what follows from the evaluations."""
    if analysis.distance.source == "assumed":
        yield _caveat(
            CaveatCode.DISTANCE_ASSUMED,
            "the losses do not determine the distance; it is assumed to be the one for which the "
            "job's rates are optimal",
        )
    if analysis.fit is not None:
        yield from _of_fit(analysis.fit.huber)
    shown = analysis.steps.size
    if shown < record.evaluated.size:
        yield _caveat(
            CaveatCode.THINNED,
            f"{shown} of {record.evaluated.size} evaluations are shown and fitted",
        )
    yield _caveat(
        CaveatCode.MIXED_BOUNDS,
        "schedule_free is bounded at its average, the schedules at their last iterate: a "
        "comparison also depends on how tight each bound is",
    )
    yield _caveat(
        CaveatCode.NORMS_AHEAD,
        "further steps are assumed to have the gradient norms of the last "
        f"{100 * RECENT_SHARE:g} % of the steps so far",
    )


def _of_fit(line: LossFit) -> Iterator[Caveat]:
    if line.M > 1 + SLOPE_SLACK:
        yield _caveat(
            CaveatCode.SLOPE_ABOVE_ONE,
            f"the losses fall {line.M:.3g} times as much as the bound, so at this "
            "distance it is not a bound: do not rely on best rates or their predictions",
        )
    if line.median_relative_error > GOOD_ERROR:
        yield _caveat(
            CaveatCode.POOR_FIT,
            f"half of the losses are more than {100 * line.median_relative_error:.2g} % off the "
            "line: they do not follow the bound",
        )
    if line.n < FEW_POINTS:
        yield _caveat(
            CaveatCode.FEW_POINTS, f"three parameters are fitted to only {line.n} evaluations"
        )


def _caveat(code: CaveatCode, text: str) -> Caveat:
    return Caveat(code=code, text=text)


def _steps_along_the_gradient(optimizer: OptimizerSpec) -> bool:
    if isinstance(optimizer, ScheduleFreeWrapperSpec):
        return optimizer.base.name == "SGD"
    return isinstance(optimizer, SGDScheduleFreeSpec)


def _has_momentum(optimizer: OptimizerSpec) -> bool:
    """Schedule-free's own beta, which puts y between z and x, is covered for every value."""
    match optimizer:
        case ScheduleFreeWrapperSpec(base=base):
            return bool(getattr(base, "momentum", 0) or getattr(base, "betas", (0, 0))[0])
        case AdamCScheduleFreePlusSpec():
            return optimizer.betas[0] > 0
        case AdamWScheduleFreeSpec():
            return optimizer.inner_momentum > 0
        case _:
            return averaging_of(optimizer) is None


def _decays_weights(optimizer: OptimizerSpec) -> bool:
    if isinstance(optimizer, ScheduleFreeWrapperSpec):
        return optimizer.weight_decay_at_y > 0 or optimizer.base.weight_decay > 0
    return optimizer.weight_decay > 0


def _clips_itself(optimizer: OptimizerSpec) -> bool:
    match optimizer:
        case SOAPSpec() | SFPaLMForeachSOAPSpec():
            return optimizer.gradient_clip_val > 0
        case _:
            return False
