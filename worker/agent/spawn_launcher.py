"""Starts each rank as a new process that does its own imports; see ``worker/agent/launcher.py``.

For ranks that need their own environment, and for nodes where CUDA does not survive a fork.
"""

import logging
import os
import queue
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from roadless.worker.agent.child_processes import Children
from roadless.worker.agent.launcher import (
    PRELOAD,
    RANK_ENTRY,
    Exited,
    LaunchError,
    rank_environment,
)
from roadless.worker.agent.rank_process import (
    hand_over,
    note_failure,
    open_log,
    spawn_command,
)
from roadless.worker.processes import wait_pidfd
from roadless.worker.rank_launch import RankLaunch

_log = logging.getLogger(__name__)

_DYING_SECONDS = 5.0
_STOPPING_SECONDS = 10.0


class SpawnLauncher:
    """Starts, kills and reaps ranks from one thread.

    The kernel kills ranks when the thread that started them dies, so one thread starts all of them
    and lives as long as the launcher.
    """

    def __init__(
        self,
        *,
        on_exit: Callable[[Exited], None],
        entry: str = RANK_ENTRY,
        preload: tuple[str, ...] = PRELOAD,
        interpreter: str = sys.executable,
    ) -> None:
        self._on_exit = on_exit
        self._command = spawn_command(
            interpreter, entry=entry, preload=preload, parent_pid=os.getpid()
        )
        self._children = Children()
        self._requests: queue.SimpleQueue[RankLaunch | str | None] = queue.SimpleQueue()
        self._bell = os.eventfd(0)
        self._selector = selectors.PollSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="spawnlauncher", daemon=True)
        self._thread.start()

    def launch(self, launches: Sequence[RankLaunch]) -> None:
        """Request these ranks; each does its own imports."""
        if not self._thread.is_alive():
            raise LaunchError("the spawn launcher is closed")
        for launch in launches:
            self._ask(launch)

    def kill(self, attempt_id: str) -> None:
        """Request that the attempt's ranks be killed."""
        self._ask(attempt_id)

    def pids(self) -> dict[str, list[int]]:
        """Return the processes of live ranks, by attempt."""
        return self._children.pids()

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return immediately: there is nothing to warm up."""

    def close(self) -> None:
        """Kill every rank, and end the thread."""
        self._ask(None)
        self._thread.join(_STOPPING_SECONDS)

    def _ask(self, request: RankLaunch | str | None) -> None:
        self._requests.put(request)
        os.eventfd_write(self._bell, 1)

    def _serve(self) -> None:
        is_open = True
        while is_open:
            for key, _ in self._selector.select():
                if key.fd == self._bell:
                    is_open = self._handle_requests()
                else:
                    self._reap(key.fd)
        self._end_all()

    def _handle_requests(self) -> bool:
        """Handle all pending requests; return whether the launcher continues."""
        os.eventfd_read(self._bell)
        while not self._requests.empty():
            match self._requests.get():
                case None:
                    return False
                case str(attempt_id):
                    self._children.kill(attempt_id)
                case RankLaunch() as launch:
                    self._start(launch)
        return True

    def _start(self, launch: RankLaunch) -> None:
        try:
            pidfd = self._watch(launch, self._spawn(launch))
        except OSError as error:
            _log.error("cannot start rank %d of %s: %s", launch.rank, launch.attempt_id, error)
            note_failure(launch, error)
            code = os.EX_OSERR
            self._tell(Exited(attempt_id=launch.attempt_id, rank=launch.rank, code=code))
        else:
            self._selector.register(pidfd, selectors.EVENT_READ)

    def _spawn(self, launch: RankLaunch) -> "subprocess.Popen[bytes]":
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(launch.gpu_ids)}
        facts = hand_over(launch)
        try:
            log = open_log(launch)
            try:
                return subprocess.Popen(
                    self._command,
                    stdin=facts,
                    stdout=log,
                    stderr=log,
                    env=rank_environment(os.environ) | gpus,
                    start_new_session=True,
                )
            finally:
                os.close(log)
        finally:
            os.close(facts)

    def _watch(self, launch: RankLaunch, process: "subprocess.Popen[bytes]") -> int:
        try:
            return self._children.add(launch, pid=process.pid, wait=process.wait)
        except OSError:  # no descriptor left: a rank that nobody watches must not live
            process.kill()
            process.wait()
            raise

    def _reap(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        self._tell(self._children.reap(pidfd))

    def _tell(self, exited: Exited) -> None:
        try:
            self._on_exit(exited)
        except Exception:  # the thread must survive this: all ranks would die with it
            _log.exception("the agent did not accept the end of rank %d", exited.rank)

    def _end_all(self) -> None:
        self._children.kill_all()
        for pidfd in self._children:
            if wait_pidfd(pidfd, timeout_seconds=_DYING_SECONDS):
                self._reap(pidfd)
            else:
                _log.error("a rank outlives its launcher")
