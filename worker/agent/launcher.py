"""How a node agent starts ranks: the facts of one rank, and the fork server's client.

Imported by the fork server and by every rank, so it needs the standard library only. The other end
of the pipe is ``worker/agent/fork_server.py``. ``worker/agent/spawn_launcher.py`` is the other
launcher, and ``worker/agent/node_launcher.py`` chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from roadless.worker.rank_launch import RankLaunch

#: What every rank needs and no rank should load again: 4 s of imports and optimizer kernels, paid
#: once a node. Modules, and functions as ``module:function``, which are called.
PRELOAD = (
    *("numpy", "torch", "torch._dynamo", "httpx", "safetensors.torch"),
    "roadless.optim:load_kernels",
)
RANK_ENTRY = "roadless.worker.rank.main:main"

_SECRET_PREFIXES = ("RAY_", "ROADLESS_")
_SECRET_NAMES = frozenset({"DATABASE_URL"})
#: A process with threads must not fork, and OpenBLAS starts its own on import (torch has another).
_THREADLESS = {"OPENBLAS_NUM_THREADS": "1"}


class LaunchError(Exception):
    """Ranks cannot be started; the message carries the end of the fork server's log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exited:
    """One rank's process is gone and reaped. ``code``: negative for a signal."""

    attempt_id: str
    rank: int
    code: int


class Launcher(Protocol):
    """Starts ranks and reports, through the callback it was given, how each one ended."""

    def launch(self, launches: Sequence[RankLaunch]) -> None:
        """Start these ranks; raise LaunchError when none of them can be asked for.

        One that cannot be started is told as an end, with its cause in its log.
        """

    def kill(self, attempt_id: str) -> None:
        """Ask for SIGKILL to all ranks of the attempt; their ends are reported as usual."""

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return once ranks can be started as fast as they ever are; raise LaunchError if not."""

    def close(self) -> None:
        """End the launcher and with it every rank."""


def rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` without Ray's variables and ours: ranks get no token but their own.

    Stripped before the fork server is executed, since a process's first environment stays readable
    in ``/proc`` whatever it deletes later.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(_SECRET_PREFIXES) and name not in _SECRET_NAMES
    }
    return kept | _THREADLESS
