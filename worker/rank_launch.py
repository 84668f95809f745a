"""What a rank is launched with: one value, as JSON through a pipe or a file descriptor.

It includes where the node's operator lets the job take data and models from. The fork server
imports this module: standard library only.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

#: Folder beside those of attempts, for the environments of uploaded wheels.
ENVIRONMENTS = "environments"
#: Folder beside those of attempts: what has begun on each node that has this scratch folder.
CLAIMS = "claims"

#: How ranks are started: forked from a warm process, or spawned with their own imports.
LaunchMethod = Literal["fork", "spawn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSources:
    """What jobs may read data from: public web addresses, unless the operator says otherwise."""

    roots: tuple[str, ...] = ()  #: folders of the node that data and tokenizers may be in
    #: URL prefixes that may be read although they are private (http, https), or with the
    #: credentials of the node (s3, gs).
    urls: tuple[str, ...] = ()
    allow_hub: bool = False  #: whether data sets may be fetched from the Hugging Face Hub
    cache: str = "~/.roadless/data-cache"  #: of prepared data; ``~`` is the home of the node's user
    cache_bytes: int = 100 * 2**30
    project: str = ""  #: whose job it is
    #: Names of the job's own credentials, which are in the environment.
    secrets: tuple[str, ...] = ()

    def has_own(self, *names: str) -> bool:
        """Whether the job has its own credentials under all these names."""
        return set(names) <= set(self.secrets)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSources:
    """Where jobs may take models from, besides presets: nowhere, unless the operator allows it."""

    roots: tuple[str, ...] = ()  #: folders that saved models and tokenizers may be in
    allow_hub: bool = False  #: whether models may be fetched from the hub
    entry_points: tuple[str, ...] = ()  #: ``package.module:factory``, each in full
    allow_wheels: bool = False  #: whether jobs may bring their own packages
    wheel_sha256: str | None = None  #: of the wheel that this process has an environment for


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelFile:
    """The uploaded wheel that a job's model comes from."""

    file_name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLaunch:
    """What a rank knows when it starts; it asks the service for the rest."""

    attempt_id: str
    job_id: str
    fence: int
    token: str = field(repr=False)  #: the attempt's; travels through pipes only
    service_url: str
    rank: int  #: 0 to world_size - 1, ordered by node
    local_rank: int  #: 0, 1, ... on this node
    world_size: int
    master_addr: str  #: where rank 0 listens for the rendezvous
    master_port: int
    threads: int  #: torch threads, at least 1
    gpu_ids: tuple[str, ...] = ()  #: empty: the rank computes on the CPU
    scratch: str  #: the attempt's own folder on this node
    #: Where the rank claims itself (``worker/agent/claims.py``); its agent fills it in.
    claims: str = ""
    data_sources: DataSources = DataSources()
    model_sources: ModelSources = ModelSources()
    method: LaunchMethod = "fork"
    wheel: WheelFile | None = None  #: needs its own environment, so the rank is spawned

    @property
    def log_path(self) -> Path:
        """Where the rank's standard output and error go."""
        return Path(self.scratch) / f"rank-{self.rank}.log"

    @property
    def environments(self) -> Path:
        """Where this node keeps the environments of wheels."""
        return Path(self.scratch).parent / ENVIRONMENTS

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build the value from what ``to_json`` gave, after a trip through JSON."""
        nested = {
            "data_sources": DataSources(**_with_tuples(value["data_sources"])),
            "model_sources": ModelSources(**_with_tuples(value["model_sources"])),
            "wheel": WheelFile(**value["wheel"]) if value.get("wheel") else None,
        }
        return cls(**{**_with_tuples(value), **nested})


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has only lists."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
