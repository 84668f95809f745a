"""Every table on one page. A change here needs a migration (see migrations/README.md)."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: BIGINT that SQLite still auto-increments (it does so only for INTEGER PRIMARY KEY).
BigSequence = BigInteger().with_variant(Integer(), "sqlite")
Json = JSON().with_variant(JSONB(), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite keeps no zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Refuse a naive time; store UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"expected an aware datetime, saw {value!r}")
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Give back an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of all tables; names of constraints are fixed so that migrations can drop them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: Json, list[Any]: Json}


class TokenRow(Table):
    """A bearer token, kept as a hash only. ``audience``: user or runner."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    audience: Mapped[str] = mapped_column(String(10))
    project: Mapped[str] = mapped_column(String(63))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]


class IdempotencyRow(Table):
    """The stored answer to a POST that carried an Idempotency-Key, written with its effect."""

    __tablename__ = "idempotency_keys"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    response: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class JobRow(Table):
    """What is wanted, and where it is. ``version`` is the ETag; progress does not move it."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_listing", "project", "created_at", "id"),
        Index("ix_jobs_claiming", "phase", "priority", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(100))
    spec: Mapped[dict[str, Any]]
    spec_version: Mapped[int]
    priority: Mapped[int]
    phase: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None] = mapped_column(String(40))
    message: Mapped[str | None] = mapped_column(Text)
    desired: Mapped[str] = mapped_column(String(10))
    evaluations_requested: Mapped[int] = mapped_column(default=0)
    evaluations_served: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=1)
    #: Fencing number of the newest attempt; 0 before the first.
    fence: Mapped[int] = mapped_column(default=0)
    #: Attempts lost since one last saved a training state.
    losses_in_a_row: Mapped[int] = mapped_column(default=0)
    #: After several losses in a row: when the next attempt may start; null: at once.
    not_before: Mapped[datetime | None]
    #: When the current phase must have ended; null: no deadline.
    deadline_at: Mapped[datetime | None]
    step: Mapped[int] = mapped_column(BigInteger, default=0)
    samples: Mapped[int] = mapped_column(BigInteger, default=0)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    wall_seconds: Mapped[float] = mapped_column(default=0.0)
    gpu_seconds: Mapped[float] = mapped_column(default=0.0)
    last_heard_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class RunnerRow(Table):
    """The runner of one cluster, under the name it was last given. ``nodes``: as last reported."""

    __tablename__ = "runners"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    #: Which cluster it speaks for; null until a runner has said so (older releases do not).
    cluster: Mapped[str | None] = mapped_column(String(200), unique=True, index=True)
    #: Of the process that registered last: an older one is not listened to.
    session: Mapped[str | None] = mapped_column(String(200))
    nodes: Mapped[list[Any]]
    last_seen_at: Mapped[datetime]
    created_at: Mapped[datetime]


class AttemptRow(Table):
    """One try of a job: a lease held by a runner, and the fence that keeps older tries out."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("job_id", "fence"),
        Index("ix_attempts_holding", "runner_id", "released_at"),
        Index("ix_attempts_leases", "ended_at", "lease_until"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    project: Mapped[str] = mapped_column(String(63))
    runner_id: Mapped[str] = mapped_column(ForeignKey("runners.id"))
    fence: Mapped[int]
    #: A new token is minted each time the attempt is handed to its runner to start.
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    world_size: Mapped[int]
    cpus_per_worker: Mapped[int]
    gpus_per_worker: Mapped[int]
    resume_checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    #: Points of older attempts after this step are superseded.
    resumed_step: Mapped[int] = mapped_column(BigInteger)
    provenance: Mapped[dict[str, Any]]
    lease_until: Mapped[datetime]
    #: When one of its ranks last reported; null: none has.
    heard_at: Mapped[datetime | None]
    #: When its ranks were last seen to use processor time; null: never.
    moved_at: Mapped[datetime | None]
    #: Whether the runner has ever listed it as alive; if so, its absence means that it died.
    seen_alive: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    first_step_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(String(40))
    message: Mapped[str | None] = mapped_column(Text)
    #: When the runner reported that it holds nothing any more.
    released_at: Mapped[datetime | None]
    #: Number of workers to continue with after the next training state; null: the current one.
    grow_to: Mapped[int | None]


class RankRow(Table):
    """How far one rank's events are applied: the highest sequence number."""

    __tablename__ = "ranks"

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    applied_seq: Mapped[int] = mapped_column(BigInteger)


class MetricChunkRow(Table):
    """Points of one series, packed (see ``service/metrics/chunks.py``), merged as they age."""

    __tablename__ = "metric_chunks"
    __table_args__ = (
        Index("ix_metric_chunks_series", "job_id", "name", "fence", "level", "first_step"),
    )

    id: Mapped[int] = mapped_column(BigSequence, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str] = mapped_column(String(100))
    fence: Mapped[int]
    #: Its size class (see ``service/metrics/store.py``).
    level: Mapped[int]
    first_step: Mapped[int] = mapped_column(BigInteger)
    last_step: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int]
    data: Mapped[bytes] = mapped_column(LargeBinary)


class EvalPointRow(Table):
    """An evaluation at the averaged point x."""

    __tablename__ = "eval_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    samples: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    wall_seconds: Mapped[float]
    gpu_seconds: Mapped[float]
    #: Null when not finite.
    loss: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class CheckpointRow(Table):
    """A complete checkpoint. The row is written after every file is stored and hashed."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        Index("ix_checkpoints_job", "job_id", "kind", "step"),
        Index("ix_checkpoints_attempt", "attempt_id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"))
    project: Mapped[str] = mapped_column(String(63))
    fence: Mapped[int]
    kind: Mapped[str] = mapped_column(String(10))
    step: Mapped[int] = mapped_column(BigInteger)
    loss: Mapped[float | None]
    #: Kept by retention: a user requested it, or a job starts from it.
    pinned: Mapped[bool]
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class DatasetRow(Table):
    """An uploaded data set: open for files, then sealed for jobs."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("project", "name"),
        Index("ix_datasets_listing", "project", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(100))
    format: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(10))
    created_at: Mapped[datetime]
    #: When the last part arrived.
    touched_at: Mapped[datetime]


class DatasetPartRow(Table):
    """A part of a file of a data set. The row is written after its content is stored."""

    __tablename__ = "dataset_parts"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    file_name: Mapped[str] = mapped_column(String(128), primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))


class SecretRow(Table):
    """A secret of a project, sealed (see ``service/secrets/cipher.py``)."""

    __tablename__ = "secrets"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    #: Which key sealed it; reveals nothing about the key.
    key_id: Mapped[str] = mapped_column(String(16), index=True)
    created_at: Mapped[datetime]
    #: When its value was last put.
    updated_at: Mapped[datetime]


class WheelRow(Table):
    """An uploaded wheel. The row exists before its file does, and outlives it."""

    __tablename__ = "wheels"
    __table_args__ = (Index("ix_wheels_listing", "project", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project: Mapped[str] = mapped_column(String(63))
    file_name: Mapped[str] = mapped_column(String(255))
    distribution: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]
    #: Whether its file is stored, so that jobs may use it.
    is_stored: Mapped[bool]
    created_at: Mapped[datetime]


class EventRow(Table):
    """A job's history, one readable line each."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigSequence, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    project: Mapped[str] = mapped_column(String(63))
    attempt_id: Mapped[str | None] = mapped_column(String(40))
    at: Mapped[datetime]
    code: Mapped[str] = mapped_column(String(100))
    message: Mapped[str] = mapped_column(Text)
