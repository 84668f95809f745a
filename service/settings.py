"""Settings of the service, read once from the environment (prefix ``ROADLESS_``)."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

#: SQLite, in the home folder.
DATABASE_FILE = "roadless.db"

_BUCKET_URL = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?$"


class SettingsError(Exception):
    """A setting is unusable; the message names the variable."""


class Settings(BaseSettings):
    """Everything an operator can set; docs/settings.md lists each one."""

    model_config = SettingsConfigDict(env_prefix="ROADLESS_", frozen=True, extra="ignore")

    home: Path = Field(
        Path("~/.roadless"),
        description="data folder: database, blobs, unfinished uploads, first tokens",
    )
    database_url: str | None = Field(
        None, validation_alias="DATABASE_URL", description="null: SQLite in the home folder"
    )
    blobs: str | None = Field(
        None, pattern=_BUCKET_URL, description="s3://BUCKET or s3://BUCKET/PREFIX; null: a folder"
    )
    s3_endpoint: str | None = Field(
        None, pattern="^https?://.", description="URL of the S3-compatible store; null: Amazon's"
    )
    s3_region: str | None = Field(
        None, description="region of the bucket; null: what the SDK finds"
    )
    s3_path_style: bool = Field(
        False, description="the bucket is in the path of URLs, not in the host"
    )
    secrets_key: SecretStr | None = Field(
        None,
        description="comma-separated keys for secrets: the first seals, any of them opens; "
        "null: a file in the home folder",
    )
    host: str = "127.0.0.1"
    port: int = Field(8700, ge=0, le=65535)
    lease_seconds: float = Field(30.0, gt=0, description="silence after which an attempt is lost")
    start_seconds: float = Field(120.0, gt=0, description="deadline of STARTING")
    stop_seconds: float = Field(600.0, gt=0, description="deadline of STOPPING and PAUSING")
    max_pause_seconds: float | None = Field(
        None,
        gt=0,
        description="how long a job may stay PAUSED before it is stopped; null: for ever",
    )
    forget_runner_seconds: float | None = Field(
        None,
        gt=0,
        description="silence after which a runner is given up and its seats count as free; "
        "null: never",
    )
    grow_seconds: float | None = Field(
        600.0,
        ge=0,
        description="how long an elastic job keeps its number of workers before it may grow; "
        "null: it never grows",
    )
    retry_delay_seconds: float = Field(
        2.0,
        ge=0,
        description="what the second loss in a row costs before the next attempt, doubled with "
        "each further one up to 60 s; the first is replaced at once",
    )
    tick_seconds: float = Field(1.0, gt=0, description="how often leases and deadlines are checked")
    max_body_bytes: int = Field(8 * 2**20, gt=0, description="largest JSON request")
    max_file_bytes: int = Field(2**40, gt=0, description="largest file of a checkpoint")
    max_dataset_bytes: int = Field(2**40, gt=0, description="total size of an uploaded data set")
    allow_wheels: bool = Field(
        False, description="users may upload wheels, whose code runs on the training nodes"
    )
    request_threads: int = Field(16, ge=1, description="threads for users' requests")
    report_threads: int = Field(
        16, ge=1, description="threads reserved for reports, syncs and the loop"
    )

    @model_validator(mode="after")
    def _forgets_nobody_before_the_lease(self) -> Self:
        forget = self.forget_runner_seconds
        if forget is not None and forget < self.lease_seconds:
            raise ValueError(
                f"expected ROADLESS_FORGET_RUNNER_SECONDS >= {self.lease_seconds:g}, the lease, "
                f"saw {forget:g}"
            )
        return self

    @property
    def home_dir(self) -> Path:
        """The data folder with ``~`` expanded."""
        return self.home.expanduser()

    @property
    def uploads_dir(self) -> Path:
        """The folder for uploads in progress."""
        return self.home_dir / "uploads"

    @property
    def resolved_database_url(self) -> str:
        """The database in use: ``DATABASE_URL`` or SQLite in the home folder."""
        return self.database_url or f"sqlite:///{self.home_dir / DATABASE_FILE}"


def read_settings() -> Settings:
    """Read the settings from the environment; raise SettingsError for the first unusable one."""
    try:
        return Settings()
    except ValidationError as error:
        fault = error.errors()[0]
        if not fault["loc"]:  # it is about several, and names them
            raise SettingsError(fault["msg"].removeprefix("Value error, ")) from None
        name = str(fault["loc"][0])
        variable = name if name.isupper() else f"ROADLESS_{name.upper()}"
        what = re.sub(r"^\w+ should ", "", fault["msg"]).partition(", ")[0]
        raise SettingsError(f"expected {variable} to {what}, saw {fault['input']!r}") from None
