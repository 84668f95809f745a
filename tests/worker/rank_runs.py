"""Ranks as real processes, forked as in production, for tests of what several of them do."""

import json
import socket
from pathlib import Path
from typing import Any

from worker_drills import make_launch, wait_until

from roadless.worker.agent.fork_launcher import ForkLauncher
from roadless.worker.agent.launcher import Exited

Findings = list[dict[str, Any]]

PRELOAD = ("numpy", "torch", "torch._dynamo", "httpx", "safetensors.torch", "sklearn.datasets")


class Ranks:
    """Starts ranks that run ``entry``, and tells how they ended."""

    def __init__(self, scratch: Path, *, entry: str) -> None:
        self._exits: list[Exited] = []
        self._launcher = ForkLauncher(
            scratch=scratch, on_exit=self._exits.append, entry=entry, preload=PRELOAD
        )

    def run(
        self, scratch: Path, drill: str, *, world_size: int = 1, url: str = "", **changes: Any
    ) -> list[int]:
        """Run the ranks to their ends; return their exit codes, rank 0 first.

        ``changes``: of what each of them starts with.
        """
        self._exits.clear()
        port = _free_port()
        self._launcher.launch(
            [
                make_launch(
                    scratch,
                    drill,
                    rank=rank,
                    world_size=world_size,
                    master_port=port,
                    service_url=url,
                    **changes,
                )
                for rank in range(world_size)
            ]
        )
        wait_until(lambda: len(self._exits) == world_size, seconds=60)
        return [end.code for end in sorted(self._exits, key=lambda end: end.rank)]

    def drill(self, scratch: Path, drill: str, *, world_size: int = 2) -> Findings:
        """Run a drill; return what each rank found."""
        codes = self.run(scratch, drill, world_size=world_size)
        logs = [path.read_text() for path in sorted(scratch.glob("*.log"))]
        assert not any(codes), (codes, logs)
        paths = [scratch / f"found-{rank}.json" for rank in range(world_size)]
        return [json.loads(path.read_text()) for path in paths]

    def close(self) -> None:
        self._launcher.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
