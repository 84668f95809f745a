"""What an attempt's regular end means for a job whose checkpoints did not pass their check. Pure.

A job that has reached its budget has SUCCEEDED only if a model of it is listed, or no check has
refused one: what a user downloads is the model, and not the curve.
"""

from dataclasses import dataclass

from roadless.service.contract.reports.events import Finished
from roadless.service.contract.states import REACHED, Reason


@dataclass(frozen=True)
class Models:
    """What is stored of a job's eval checkpoints.

    ``newest_step``: of the newest that is listed, None when none is. ``num_refused``: how many did
    not pass their check; ``last_refusal``: why the last of them did not. ``last_loss``: why the
    last that was not written, or not evaluated, was lost; None when none was.
    """

    newest_step: int | None
    num_refused: int = 0
    last_refusal: str | None = None
    last_loss: str | None = None


def reason_of(event: Finished, models: Models) -> Reason:
    """Why the attempt ended: at the budget, unless all that it made was refused."""
    has_failed = models.newest_step is None and models.num_refused > 0
    reason = Reason(event.reason)
    return Reason.CHECKPOINT_MISMATCH if has_failed and reason in REACHED else reason


def missing_model(event: Finished, models: Models) -> str:
    """A sentence for the user if the last point of the curve has no model; empty if it has."""
    newest = models.newest_step
    if newest is not None and newest >= event.step:
        return ""
    if newest is None and models.num_refused:
        return (
            f"expected checkpoints that pass their check, saw {models.num_refused} that did not, "
            f"so there is no model; the points of the curve stay. The last: {models.last_refusal}. "
            "A model that draws random numbers in evaluation, or keeps state outside its "
            "parameters and buffers, is another one when it is loaded: change it, and submit "
            "the job again"
        )
    if newest is None:
        return f"there is no model: {models.last_loss}" if models.last_loss else ""
    if models.num_refused:
        return (
            f"the newest model is that of step {newest}, since later checkpoints did not pass "
            f"their check: {models.last_refusal}"
        )
    return ""
