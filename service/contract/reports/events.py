"""What a rank may report, and the reply.

Every event carries the rank's own sequence number ``seq``, 1, 2, 3, ... per attempt and rank. The
service keeps the highest one applied; an event that arrives twice therefore counts once.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from roadless.service.contract.base import MAX_MESSAGE_LENGTH, Message
from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.job.budget import BudgetSpec
from roadless.service.contract.states import Desired, Reason

#: Dotted lower-case names.
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.]{0,99}$")]


class _Event(Message):
    seq: int = Field(0, ge=0, description="0: not numbered yet; the reporter numbers from 1")


class _Position(_Event):
    """How far training is, counted over the whole job and all its attempts."""

    step: int = Field(ge=0, description="optimizer steps completed")
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0, description="0 for data without tokens")
    wall_seconds: float = Field(ge=0, allow_inf_nan=False, description="seconds in RUNNING")
    gpu_seconds: float = Field(ge=0, allow_inf_nan=False)


#: Prefix of a further evaluation set's name: the key of its fingerprint in provenance.
SET_FINGERPRINT: Final = "data_fingerprint."


class Started(_Event):
    """The gang is about to train. ``provenance``: versions, hardware, data fingerprint."""

    kind: Literal["started"] = "started"
    resumed_step: int = Field(0, ge=0)
    world_size: int = Field(ge=1)
    provenance: dict[str, str] = {}


class StepMetrics(_Position):
    """One optimizer step: dotted names, for instance ``train.loss`` and ``grad.norm``."""

    kind: Literal["step"] = "step"
    values: dict[MetricName, float]


class EvalPoint(_Position):
    """An evaluation at the averaged point x after step ``step``. ``loss``: mean per example."""

    kind: Literal["eval"] = "eval"
    loss: float
    metrics: dict[MetricName, float] = {}


#: The name of a number of one rank; ``rank.N.`` comes before it.
UsageName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class Usage(_Event):
    """What the reporting rank uses of its machine after ``step``: memory, processors, GPU.

    Kept as the series ``rank.N.<name>`` of rank N.
    """

    kind: Literal["usage"] = "usage"
    step: int = Field(ge=0, description="optimizer steps completed")
    values: dict[UsageName, float] = Field(max_length=32)


class CheckpointSaved(_Event):
    """All files of the manifest are uploaded.

    ``evaluations_served``: how many of the users' requests are answered with it, counted over the
    job's life; if above 0, retention keeps it.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    manifest: Manifest
    evaluations_served: int = Field(0, ge=0)


#: Codes of notices that an eval checkpoint is not listed: its check found something else than
#: training did, or was not possible.
REFUSED_CHECKPOINT: Final = ("checkpoint.mismatch", "checkpoint.unchecked")
#: Codes of notices that a checkpoint was not written, or its evaluation beside training failed.
LOST_CHECKPOINT: Final = ("checkpoint.failed", "evaluation.lost")

#: Codes of notices that a rank prepares data, or tries its model before the first step; each one
#: renews the deadline of STARTING.
DATA_PREPARING, MODEL_TRIED = "data.preparing", "model.tried"


class Notice(_Event):
    """Something a reader of the job's events should know, for instance thinned metrics."""

    kind: Literal["notice"] = "notice"
    code: str = Field(max_length=100)
    message: str = Field(max_length=MAX_MESSAGE_LENGTH)


class BudgetNow(Message):
    """The current budget, which users may change while a job trains."""

    limits: BudgetSpec | None = Field(description="null: open-ended")


class Finished(_Event):
    """The attempt ends as wanted: at a limit or goal of its budget, or as a user asked.

    ``budget``: the one that the ranks obeyed; if it was extended since, the job continues.
    """

    kind: Literal["finished"] = "finished"
    reason: Literal[
        Reason.BUDGET_REACHED,
        Reason.GOAL_REACHED,
        Reason.NO_BETTER,
        Reason.STOPPED_BY_USER,
        Reason.PAUSED_BY_USER,
        Reason.RESIZED,
    ]
    step: int = Field(ge=0)
    budget: BudgetNow | None = None


class Failed(_Event):
    """The attempt ends with an error."""

    kind: Literal["failed"] = "failed"
    reason: Reason
    message: str = Field(max_length=MAX_MESSAGE_LENGTH)


Event = Annotated[
    Started | StepMetrics | Usage | EvalPoint | CheckpointSaved | Notice | Finished | Failed,
    Field(discriminator="kind"),
]

#: The most events in one report; a longer spool is sent in several.
MAX_EVENTS_PER_REPORT = 2000


class Report(Message):
    """One message of one rank. Without events it is a heartbeat."""

    rank: int = Field(ge=0)
    events: list[Event] = Field(default=[], max_length=MAX_EVENTS_PER_REPORT)


class ReportReply(Message):
    """What the service has stored and wants: ``ack_seq`` is the highest sequence number applied.

    ``evaluations_requested`` counts a user's requests for an evaluation over the job's life; the
    rank evaluates when it exceeds what it has served. ``budget``: null from an older service; then
    that of the specification holds.
    """

    ack_seq: int
    desired: Desired
    evaluations_requested: int = 0
    budget: BudgetNow | None = None
    resize: bool = Field(False, description="leave with the next training state for a larger gang")
