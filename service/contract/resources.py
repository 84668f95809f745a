"""What the API answers with, for the service's views and the client alike."""

from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import Field

from roadless.service.contract.base import Resource
from roadless.service.contract.checkpoint.manifest import (
    CheckpointFile,
    CheckpointKind,
    EvaluationReceipt,
)
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.states import Desired, Phase

Item = TypeVar("Item")


class Page(Resource, Generic[Item]):
    """One page of a list in stable order. ``last_id`` is the cursor for ``after``."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Progress(Resource):
    """How far a job is. ``last_heard_at``: when one of its ranks last reported."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0
    last_heard_at: datetime | None = None


class Attempt(Resource):
    """One try of the job on one gang of ranks."""

    id: str
    fence: int
    world_size: int
    resumed_step: int
    created_at: datetime
    first_step_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    message: str | None = None
    provenance: dict[str, str] = {}


class Job(Resource):
    """A job: what is wanted, where it is and why."""

    object: Literal["job"] = "job"
    id: str
    project: str
    name: str
    phase: Phase
    reason: str | None = None
    message: str | None = None
    desired: Desired
    version: int
    spec: JobSpec
    progress: Progress
    attempt: Attempt | None = None
    created_at: datetime
    started_at: datetime | None = Field(None, description="when the first step was stored")
    ended_at: datetime | None = None


class JobEvent(Resource):
    """One line of a job's history."""

    object: Literal["event"] = "event"
    id: str
    at: datetime
    code: str
    message: str
    attempt_id: str | None = None


class CurvePoint(Resource):
    """An evaluation at the averaged point: what a finished model of this step would score."""

    step: int
    samples: int
    tokens: int
    wall_seconds: float
    gpu_seconds: float
    loss: float | None
    metrics: dict[str, float | None]
    checkpoint_id: str | None = None
    bound: float | None = None


class EvalCurve(Resource):
    """The anytime curve, by step; points of superseded attempts left out."""

    object: Literal["eval_curve"] = "eval_curve"
    job_id: str
    data: list[CurvePoint]


class MetricSummary(Resource):
    """One series: how many points, and its last and smallest finite value."""

    name: str
    count: int
    last: float | None
    min: float | None


class MetricBuckets(Resource):
    """A series in at most ``buckets`` buckets along x; non-finite values are counted, not drawn."""

    object: Literal["metric"] = "metric"
    name: str
    axis: Literal["step", "samples", "tokens", "wall_seconds", "gpu_seconds"]
    x: list[float]
    last: list[float | None]
    min: list[float | None]
    max: list[float | None]
    count: list[int]
    non_finite_count: list[int]


class Checkpoint(Resource):
    """A complete checkpoint: every file is stored and hashed."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    job_id: str
    attempt_id: str
    kind: CheckpointKind
    step: int
    samples: int
    pinned: bool
    created_at: datetime
    total_bytes: int
    evaluation: EvaluationReceipt | None = None
    spec: JobSpec | None = None
    files: list[CheckpointFile] = []


class ProblemError(Resource):
    """One fault of a request: where (an RFC 6901 pointer into the body) and what."""

    pointer: str
    message: str


class Problem(Resource):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[ProblemError] = []
