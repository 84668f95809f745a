"""What the theory says about a job: ``GET /v1/jobs/{job_id}/theory``.

``optim/theory/bounds.py`` has the formulas and ``docs/theory.md`` says how to read the answers.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from roadless.service.contract.base import Resource

#: A number of an answer: none without a finite one.
Computed = Annotated[float, Field(allow_inf_nan=False)]

#: An extension reaches at most this many times as far as the job.
MAX_EXTENSION: Final = 10

#: Each step's own gradient norm, or one for all, as is usual when Adam is compared with theory.
Norms = Literal["logged", "even"]
WayName = Literal["go_on", "stretch", "cooldown", "second_stage", "tuned"]


class CaveatCode(StrEnum):
    """Why a promise is not a proof for this job."""

    NON_CONVEX = "non_convex"
    ADAPTIVE_OPTIMIZER = "adaptive_optimizer"
    MOMENTUM = "momentum"
    WEIGHT_DECAY = "weight_decay"
    CLIPPING = "clipping"
    MIXED_BOUNDS = "mixed_bounds"
    NORMS_AHEAD = "norms_ahead"
    DISTANCE_ASSUMED = "distance_assumed"
    SLOPE_ABOVE_ONE = "slope_above_one"
    POOR_FIT = "poor_fit"
    FEW_POINTS = "few_points"
    INTERPOLATED = "interpolated"
    COARSENED = "coarsened"
    THINNED = "thinned"


class Caveat(Resource):
    """One thing that the theory does not cover: a stable code, and a sentence for people."""

    code: CaveatCode
    text: str


class BoundTerms(Resource):
    """The bound as a sum: distance from the start, noise, and the cost of the last iterate."""

    distance: Computed
    noise: Computed
    last_iterate: Computed


class TheoryPoint(Resource):
    """The bound beside one evaluation. ``gap``: the observed loss minus the predicted one."""

    step: int
    loss: Computed
    bound: Computed | None
    terms: BoundTerms | None
    predicted: Computed | None
    gap: Computed | None


class BoundFit(Resource):
    """loss ~ offset + slope * bound, and how well that holds."""

    offset: Computed
    slope: Computed
    r2: Computed
    median_relative_error: Computed
    num_points: int


class Fits(Resource):
    """The same line, fitted twice; overlay and promises are those of ``huber``."""

    huber: BoundFit
    least_squares: BoundFit


class Gap(Resource):
    """How far the observed losses are from the predicted ones: at the end, and at worst."""

    last: Computed
    last_step: int
    largest: Computed
    largest_step: int


class Promise(Resource):
    """What the theory promises for a schedule: a bound, and through the fit a loss."""

    bound: Computed | None
    predicted: Computed | None


class Alternative(Promise):
    """A schedule at its best base rate, over the steps and gradient norms that the job had.

    ``relative_lr``: that rate over the largest one of the job.
    """

    schedule: str
    base_lr: Computed
    relative_lr: Computed


class ExtensionPoint(Resource):
    """A point on the way to an extension's end."""

    step: int
    bound: Computed | None
    predicted: Computed | None


class Continuation(Promise):
    """One way to have ``to_step`` steps.

    ``go_on``: at the last rate; ``stretch``: the same schedule made for all steps; ``cooldown``:
    the same rate, then a cooldown; ``second_stage``: a lower rate after the old schedule's stable
    part; ``tuned``: a new run at the best rate. ``starts_at``: it needs a training state of that
    step or before; 0: none. ``cooldown_len``: share of all steps in the last cooldown; ``factor``:
    of the rate in the second stage. Null where the way has none.
    """

    name: WayName
    starts_at: int
    base_lr: Computed
    cooldown_len: Computed | None = None
    factor: Computed | None = None


class Extension(Resource):
    """How to have ``to_step`` steps, the smallest bound first.

    ``made_for``: for how many steps the job's schedule was made; null: for none in particular, and
    nothing has to be redone. ``advised``: the best that resumes from a training state, if any.
    ``data``: points of the advised one, or else of the best.
    """

    from_step: int
    made_for: int | None
    to_step: int
    grad_norm: Computed = Field(description="assumed for further steps")
    advised: WayName | None
    advice: str
    continuations: list[Continuation]
    data: list[ExtensionPoint]


class Theory(Resource):
    """The convex theory beside a job's eval curve."""

    object: Literal["theory"] = "theory"
    job_id: str
    num_steps: int
    bounded: Literal["average", "last_iterate"]
    norms: Norms
    distance: Computed
    distance_source: Literal["given", "fitted", "assumed"]
    base_lr: Computed = Field(description="the largest rate used")
    best_factor: Computed | None = Field(description="of all rates, for the least bound so far")
    grad_norm: Computed = Field(description="root mean square over all steps")
    data: list[TheoryPoint]
    fit: Fits | None
    no_fit_reason: str | None
    gap: Gap | None
    alternatives: list[Alternative]
    extension: Extension
    caveats: list[Caveat]
