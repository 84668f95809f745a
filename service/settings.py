"""Settings of the service, read once from the environment (prefix ``ROADLESS_``)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_BUCKET_URL = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?$"


class Settings(BaseSettings):
    """Everything an operator can set; docs/settings.md lists each one."""

    model_config = SettingsConfigDict(env_prefix="ROADLESS_", frozen=True, extra="ignore")

    home: Path = Field(
        Path("~/.roadless"), description="data folder: database, blobs, uploads, tokens"
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
    s3_region: str | None = Field(None, description="null: as the SDK finds it")
    s3_path_style: bool = Field(False, description="the bucket is named in the path of URLs")
    host: str = "127.0.0.1"
    port: int = Field(8700, ge=0, le=65535)
    lease_seconds: float = Field(30.0, gt=0, description="silence after which an attempt is lost")
    start_seconds: float = Field(120.0, gt=0, description="deadline of STARTING")
    stop_seconds: float = Field(600.0, gt=0, description="deadline of STOPPING")
    tick_seconds: float = Field(1.0, gt=0, description="how often deadlines are looked at")
    max_body_bytes: int = Field(8 * 2**20, gt=0, description="largest JSON request")
    max_file_bytes: int = Field(2**40, gt=0, description="largest file of a checkpoint")
    request_threads: int = Field(16, ge=1, description="threads for users' requests")
    report_threads: int = Field(16, ge=1, description="threads kept for reports and syncs")

    @property
    def home_dir(self) -> Path:
        """The data folder with ``~`` expanded."""
        return self.home.expanduser()

    @property
    def uploads_dir(self) -> Path:
        """Where files are while they arrive."""
        return self.home_dir / "uploads"

    @property
    def resolved_database_url(self) -> str:
        """The database in use: ``DATABASE_URL`` or SQLite in the home folder."""
        return self.database_url or f"sqlite:///{self.home_dir / 'roadless.db'}"
