"""How a node agent starts ranks: the interface of launchers, and what they share.

Imported by the fork server and every rank, so it needs only the standard library. The launchers are
``worker/agent/fork_launcher.py``, the client of ``worker/agent/fork_server.py``, and
``worker/agent/spawn_launcher.py``; ``worker/agent/node_launcher.py`` chooses between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from roadless.service.contract import environment
from roadless.worker.rank_launch import RankLaunch

#: What every rank needs and none should load again: 4 s of imports and optimizer kernels, paid once
#: per node. Modules, and functions as ``module:function``, which are called.
PRELOAD = (
    *("numpy", "torch", "torch._dynamo", "httpx", "safetensors.torch"),
    "roadless.optim:load_kernels",
)
RANK_ENTRY = "roadless.worker.rank.main:main"

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
        """Start these ranks; raise LaunchError when none of them can be requested.

        A rank that cannot be started is reported as exited, with the cause in its log.
        """

    def kill(self, attempt_id: str) -> None:
        """Request SIGKILL for all ranks of the attempt; their exits are reported as usual."""

    def pids(self) -> dict[str, list[int]]:
        """Return the processes of live ranks, by attempt."""

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return once ranks can be started at full speed; raise LaunchError if not."""

    def close(self) -> None:
        """End the launcher and every rank with it."""


def rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a rank's process is started with, from its node's environment.

    Chosen before the fork server is executed, since a process's initial environment stays readable
    in ``/proc`` whatever it deletes later.
    """
    return environment.rank_environment(environ) | _THREADLESS
