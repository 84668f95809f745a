"""What an operator sets for a runner, read once from the environment.

The service's own settings are in ``service/settings.py``. A runner lives on machines without the
service, so it reads plain environment variables itself.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, get_args

from roadless.service.contract.job.locations import require_url
from roadless.worker.rank_launch import DataSources, LaunchMethod, ModelSources

_POLL_SECONDS = 0.1


class SettingsError(Exception):
    """A setting is missing or unusable; the message names the variable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerSettings:
    """Everything an operator can set for a runner."""

    service_url: str  #: ROADLESS_URL: where the service answers, for ranks too
    runner_name: str  #: ROADLESS_RUNNER_NAME: of this cluster's runner, and of no other cluster's
    cluster: str | None  #: ROADLESS_CLUSTER: what the cluster is called across restarts of its head
    token: str | None = field(repr=False)  #: ROADLESS_RUNNER_TOKEN: takes precedence over the file
    token_file: Path  #: ROADLESS_RUNNER_TOKEN_FILE
    ray_address: str  #: RAY_ADDRESS: ``host:port``, or ``auto`` for the cluster of this machine
    allow_unauthenticated_ray: bool  #: ROADLESS_ALLOW_UNAUTHENTICATED_RAY: 1 or 0
    scratch: str  #: ROADLESS_SCRATCH: folder for spools and logs; ``~`` is expanded on each node
    data_roots: tuple[str, ...]  #: ROADLESS_DATA_ROOTS: folders jobs may read, colon-separated
    data_urls: tuple[str, ...]  #: ROADLESS_DATA_URLS: URL prefixes jobs may read, space-separated
    data_cache: str  #: ROADLESS_DATA_CACHE: folder for prepared data; ``~`` as for scratch
    data_cache_bytes: int  #: ROADLESS_DATA_CACHE_BYTES: how much of it is kept
    model_roots: tuple[str, ...]  #: ROADLESS_MODEL_ROOTS: the same for saved models
    allow_hub: bool  #: ROADLESS_ALLOW_HUB: 1 or 0
    allowed_entry_points: tuple[str, ...]  #: ROADLESS_ALLOWED_ENTRY_POINTS: comma-separated
    allow_wheels: bool  #: ROADLESS_ALLOW_WHEELS: 1 or 0: code that users upload
    launcher: LaunchMethod  #: ROADLESS_LAUNCHER: fork or spawn
    standby_agent: bool  #: ROADLESS_STANDBY_AGENT: 1 or 0: a second agent on each node

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from ``environ``; raise SettingsError when one is unusable."""
        token_file = environ.get("ROADLESS_RUNNER_TOKEN_FILE", "~/.roadless/runner.token")
        return cls(
            service_url=_http_url(environ.get("ROADLESS_URL", "http://127.0.0.1:8700")),
            runner_name=environ.get("ROADLESS_RUNNER_NAME", "default"),
            cluster=environ.get("ROADLESS_CLUSTER") or None,
            token=environ.get("ROADLESS_RUNNER_TOKEN"),
            token_file=Path(token_file).expanduser(),
            ray_address=environ.get("RAY_ADDRESS", "auto"),
            allow_unauthenticated_ray=_flag(environ, "ROADLESS_ALLOW_UNAUTHENTICATED_RAY"),
            scratch=environ.get("ROADLESS_SCRATCH", "~/.roadless/scratch"),
            data_roots=tuple(filter(None, environ.get("ROADLESS_DATA_ROOTS", "").split(":"))),
            data_urls=_urls(environ.get("ROADLESS_DATA_URLS", "")),
            data_cache=environ.get("ROADLESS_DATA_CACHE", "~/.roadless/data-cache"),
            data_cache_bytes=_positive(environ, "ROADLESS_DATA_CACHE_BYTES", default=100 * 2**30),
            model_roots=tuple(filter(None, environ.get("ROADLESS_MODEL_ROOTS", "").split(":"))),
            allow_hub=_flag(environ, "ROADLESS_ALLOW_HUB"),
            allowed_entry_points=_entry_points(environ.get("ROADLESS_ALLOWED_ENTRY_POINTS", "")),
            allow_wheels=_flag(environ, "ROADLESS_ALLOW_WHEELS"),
            launcher=_launcher(environ.get("ROADLESS_LAUNCHER", "fork")),
            standby_agent=_flag(environ, "ROADLESS_STANDBY_AGENT", default="1"),
        )

    @property
    def scratch_here(self) -> Path:
        """The scratch folder of this machine."""
        return Path(self.scratch).expanduser()

    @property
    def data_sources(self) -> DataSources:
        """What jobs may read data from."""
        return DataSources(
            roots=self.data_roots,
            urls=self.data_urls,
            allow_hub=self.allow_hub,
            cache=self.data_cache,
            cache_bytes=self.data_cache_bytes,
        )

    @property
    def model_sources(self) -> ModelSources:
        """Where jobs may take models from, besides the presets."""
        return ModelSources(
            roots=self.model_roots,
            allow_hub=self.allow_hub,
            entry_points=self.allowed_entry_points,
            allow_wheels=self.allow_wheels,
        )

    def wait_for_token(self, *, timeout_seconds: float = 60.0) -> str:
        """Return the runner's token; a service that just started may not have written it yet."""
        if self.token is not None:
            return self.token
        deadline = time.monotonic() + timeout_seconds
        while not (token := _read_token(self.token_file)):
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"expected a runner token in ROADLESS_RUNNER_TOKEN or in the file "
                    f"{self.token_file} (ROADLESS_RUNNER_TOKEN_FILE) within "
                    f"{timeout_seconds:g} s, saw none"
                )
            time.sleep(_POLL_SECONDS)
        return token


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"expected ROADLESS_RUNNER_TOKEN_FILE to be a file with a token, saw {path}: {error}"
        ) from error


def _http_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https") or rest.strip("/") == "":
        raise SettingsError(f"expected ROADLESS_URL to be an http:// or https:// URL, saw {url!r}")
    return url.rstrip("/")


def _entry_points(listed: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    for name in names:
        module, _, function = name.partition(":")
        if not module or not function.isidentifier():
            raise SettingsError(
                "expected ROADLESS_ALLOWED_ENTRY_POINTS to list package.module:factory, "
                f"saw {name!r}"
            )
    return names


def _launcher(name: str) -> LaunchMethod:
    for method in get_args(LaunchMethod):
        if name == method:
            return method  # type: ignore[no-any-return]  # of get_args
    raise SettingsError(f"expected ROADLESS_LAUNCHER to be fork or spawn, saw {name!r}")


def _urls(listed: str) -> tuple[str, ...]:
    urls = tuple(listed.split())
    for url in urls:
        if not url.startswith(("s3://", "gs://", "http://", "https://")):
            raise SettingsError(
                "expected ROADLESS_DATA_URLS to list s3://, gs://, http:// or https:// URLs, "
                f"saw {url!r}"
            )
        try:
            require_url(url)
        except ValueError as error:
            raise SettingsError(f"ROADLESS_DATA_URLS: {error}") from error
    return urls


def _positive(environ: Mapping[str, str], name: str, *, default: int) -> int:
    value = environ.get(name, str(default))
    if not value.isdecimal() or int(value) == 0:
        raise SettingsError(f"expected {name} to be a whole number above 0, saw {value!r}")
    return int(value)


def _flag(environ: Mapping[str, str], name: str, *, default: str = "0") -> bool:
    value = environ.get(name, default)
    if value not in ("0", "1"):
        raise SettingsError(f"expected {name} to be 0 or 1, saw {value!r}")
    return value == "1"
