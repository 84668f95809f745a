"""The launchers of a node, and the choice between them for each rank."""

from collections.abc import Callable, Sequence
from pathlib import Path

from roadless.worker.agent.fork_launcher import ForkLauncher
from roadless.worker.agent.launcher import PRELOAD, RANK_ENTRY, Exited, Launcher
from roadless.worker.agent.spawn_launcher import SpawnLauncher
from roadless.worker.rank_launch import RankLaunch

#: Creates the environment of a wheel and becomes a rank in it.
WHEEL_ENTRY = "roadless.worker.wheels.entry:main"


class NodeLauncher:
    """Forks ranks from a warm process, and spawns those that cannot be forked.

    Once the environment of a wheel exists, the rank runs ``RANK_ENTRY`` in it.
    """

    def __init__(
        self,
        *,
        scratch: Path,
        on_exit: Callable[[Exited], None],
        entry: str = RANK_ENTRY,
        preload: tuple[str, ...] = PRELOAD,
        log_name: str = "forkserver.log",
    ) -> None:
        self._forking = ForkLauncher(
            scratch=scratch, on_exit=on_exit, entry=entry, preload=preload, log_name=log_name
        )
        self._spawning = SpawnLauncher(on_exit=on_exit, entry=entry, preload=preload)
        self._with_wheel = SpawnLauncher(on_exit=on_exit, entry=WHEEL_ENTRY, preload=())

    def launch(self, launches: Sequence[RankLaunch]) -> None:
        """Start each rank with the launcher that it needs."""
        for launcher in self._all:
            mine = [launch for launch in launches if self._of(launch) is launcher]
            if mine:
                launcher.launch(mine)

    def kill(self, attempt_id: str) -> None:
        """Kill the attempt's ranks, whichever launcher started them."""
        for launcher in self._all:
            launcher.kill(attempt_id)

    def pids(self) -> dict[str, list[int]]:
        """Return the processes of live ranks, by attempt; all of one have the same launcher."""
        return {key: pids for each in self._all for key, pids in each.pids().items()}

    def wait_ready(self, timeout_seconds: float) -> None:
        """Wait for the fork server; nothing else has to warm up."""
        self._forking.wait_ready(timeout_seconds)

    def close(self) -> None:
        """End all launchers and every rank."""
        for launcher in self._all:
            launcher.close()

    @property
    def _all(self) -> tuple[Launcher, ...]:
        return self._forking, self._spawning, self._with_wheel

    def _of(self, launch: RankLaunch) -> Launcher:
        if launch.wheel is not None:
            return self._with_wheel
        return self._spawning if launch.method == "spawn" else self._forking
