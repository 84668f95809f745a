"""What a rank is launched with: one value, as JSON through a pipe or a file descriptor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

#: Folder beside those of attempts: environments of uploaded wheels.
ENVIRONMENTS = "environments"


#: How ranks come to life: from a warm process, or each with imports of its own.
LaunchMethod = Literal["fork", "spawn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelFile:
    """The uploaded wheel that a job's model comes from."""

    file_name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLaunch:
    """What a rank knows when it is born. The rest it asks the service for."""

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
    data_roots: tuple[str, ...] = ()  #: folders that the job's data may lie in
    data_urls: tuple[str, ...] = ()  #: beginnings of URLs that it may be read from
    data_cache: str = "~/.roadless/data-cache"  #: where prepared data is kept on this node
    data_cache_bytes: int = 100 * 2**30
    model_roots: tuple[str, ...] = ()  #: folders that saved models may lie in
    allow_hub: bool = False  #: whether the job may fetch a model from the hub
    entry_points: tuple[str, ...] = ()  #: factories that the job may call
    method: LaunchMethod = "fork"
    wheel: WheelFile | None = None  #: needs an environment of its own, and so to be spawned

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
        lists = {name: tuple(item) for name, item in value.items() if isinstance(item, list)}
        wheel = WheelFile(**value["wheel"]) if value.get("wheel") else None
        return cls(**{**value, **lists, "wheel": wheel})
