"""What runners, node agents and starting ranks exchange with the service."""

from typing import Annotated

from pydantic import Field, SecretStr, field_serializer

from roadless.service.contract.base import MAX_MESSAGE_LENGTH, Message
from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.states import Desired, Reason
from roadless.service.contract.uploads.wheels import AssignedWheel


class Node(Message):
    """One machine of a runner's cluster: what it has, and what the runner has not given out."""

    node_id: str
    cpus: float = Field(ge=0)
    gpus: float = Field(ge=0)
    free_cpus: float = Field(ge=0)
    free_gpus: float = Field(ge=0)


class RegisterRunner(Message):
    """A runner names itself and its cluster; the same cluster always gets the same runner id.

    ``cluster``: what no other cluster is called, and the same for every runner of this one.
    ``session``: what no other process is called. Both are empty from runners of older releases,
    which are known by their name alone.
    """

    name: str = Field(min_length=1, max_length=100)
    cluster: str = Field("", max_length=200)
    session: str = Field("", max_length=200)


class Registered(Message):
    """The answer to a registration."""

    runner_id: str
    lease_seconds: float


class Sync(Message):
    """What a runner sees: its nodes, which attempts are whole, hold anything, or nothing more.

    The service answers immediately if there is something to start or stop, and otherwise after
    ``wait_seconds``. ``held``: every attempt of which there is anything on the cluster, whole or
    not. ``still_seconds``: for how long no rank of an attempt has been seen to use processor time.
    """

    session: str = Field("", max_length=200)
    nodes: list[Node] = Field(max_length=10_000)
    alive: list[str] = Field(default=[], max_length=100_000, description="attempt ids")
    held: list[str] = Field(default=[], max_length=100_000, description="attempt ids")
    released: list[str] = Field(default=[], max_length=100_000, description="attempt ids")
    still_seconds: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default={}, max_length=100_000, description="by attempt id"
    )
    wait_seconds: float = Field(0.0, ge=0, le=30)


class Assignment(Message):
    """One attempt for the runner to start. The token is valid while the attempt lives.

    ``wheel``: the uploaded wheel that its model comes from, if one does.
    """

    attempt_id: str
    job_id: str
    fence: int
    token: str
    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    wheel: AssignedWheel | None = None


class SyncReply(Message):
    """What the runner must do: start these, and make sure that nothing of those is held."""

    start: list[Assignment] = []
    stop: list[str] = []


class AttemptBrief(Message):
    """What a rank needs to build itself. ``resume``: the training state to resume from, if any.

    ``initial``: the eval checkpoint that the job's model starts from, if it does.
    ``data_fingerprint``: of the data that the training state was trained on; None: not known.
    ``set_fingerprints``: likewise of the further evaluation sets that it had, by name.
    ``secrets``: values of those that the specification names; no other message has them.
    ``secret_faults``: why others are not available.
    """

    attempt_id: str
    job_id: str
    fence: int
    spec: JobSpec
    resume: Manifest | None = None
    initial: Manifest | None = None
    data_fingerprint: str | None = None
    set_fingerprints: dict[str, str] = {}
    desired: Desired = Desired.RUN
    evaluations_served: int = 0
    secrets: dict[str, SecretStr] = {}
    secret_faults: list[str] = []

    @field_serializer("secrets", when_used="json")
    def _told_to_ranks(self, secrets: dict[str, SecretStr]) -> dict[str, str]:
        return {name: value.get_secret_value() for name, value in secrets.items()}


class RankExit(Message):
    """How one rank's process ended: its exit code, negative for a signal."""

    rank: int
    code: int


class AttemptEnded(Message):
    """A node agent or runner reports that an attempt is over although its ranks did not."""

    reason: Reason
    message: str = Field(max_length=MAX_MESSAGE_LENGTH)
    exits: list[RankExit] = []
