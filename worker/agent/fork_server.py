"""The process that ranks are forked from: it has imported what they need but never used it.

Run by ``worker/agent/fork_launcher.py``, which writes requests to its standard input and reads
reports from its standard output, one JSON value per line. It must stay safe to fork: one thread, no
CUDA, no OpenMP region, no Ray. It knows nothing about jobs; it forks, kills and reaps.

    {"launch": {...}}           ->  {"forked": pid, "attempt_id", "rank"}
    {"kill": attempt_id}
    {"ping": true}              ->  {"pong": true}
                                    {"warm": seconds, "threads": 1}
                                    {"exited": code, "attempt_id", "rank"}
"""

import argparse
import gc
import json
import os
import selectors
import signal
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from roadless.worker.agent.child_processes import Children
from roadless.worker.agent.launcher import Exited
from roadless.worker.agent.rank_process import (
    Entry,
    load_entry,
    note_failure,
    redirect,
    run_rank,
)
from roadless.worker.processes import adopt_orphans, die_with_parent
from roadless.worker.rank_launch import RankLaunch

_READ_BYTES = 65536


class ForkServer:
    """The loop: forks on request, reaps promptly, exits when its requests end."""

    def __init__(self, *, entry: Entry, requests_fd: int, reports_fd: int) -> None:
        self._entry = entry
        self._requests_fd = requests_fd
        self._reports_fd = reports_fd
        self._unread = b""
        self._children = Children()
        # poll(2), unlike epoll, has no file descriptor that a child would have to close.
        self._selector = selectors.PollSelector()
        self._selector.register(requests_fd, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serve until the requests end; then the kernel kills what was forked."""
        while True:
            for key, _ in self._selector.select():
                if key.fd != self._requests_fd:
                    self._reap(key.fd)
                elif not self._read_requests():
                    return

    def report(self, message: dict[str, Any]) -> None:
        """Write one line to the agent."""
        os.write(self._reports_fd, json.dumps(message).encode() + b"\n")

    def _read_requests(self) -> bool:
        chunk = os.read(self._requests_fd, _READ_BYTES)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        for line in lines:
            self._handle(json.loads(line))
        return bool(chunk)

    def _handle(self, request: dict[str, Any]) -> None:
        match request:
            case {"launch": fields}:
                self._launch(RankLaunch.from_json(fields))
            case {"kill": attempt_id}:
                self._children.kill(attempt_id)
            case {"ping": _}:
                self.report({"pong": True})

    def _launch(self, launch: RankLaunch) -> None:
        server_pid = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                run_rank(launch, parent_pid=server_pid, begin=self._leave)
            pidfd = self._watch(launch, pid)
        except OSError as error:
            note_failure(launch, error)
            self._report_exit(
                Exited(attempt_id=launch.attempt_id, rank=launch.rank, code=os.EX_OSERR)
            )
            return
        self._selector.register(pidfd, selectors.EVENT_READ)
        self.report({"forked": pid, "attempt_id": launch.attempt_id, "rank": launch.rank})

    def _watch(self, launch: RankLaunch, pid: int) -> int:
        try:
            return self._children.add(launch, pid=pid, wait=partial(_wait, pid))
        except OSError:  # no descriptor left: a rank that nobody watches must not live
            os.kill(pid, signal.SIGKILL)
            _wait(pid)
            raise

    def _reap(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        self._report_exit(self._children.reap(pidfd))

    def _report_exit(self, exited: Exited) -> None:
        self.report({"exited": exited.code, "attempt_id": exited.attempt_id, "rank": exited.rank})

    def _leave(self) -> Entry:
        """In the child: close the server's descriptors, and return what a rank runs."""
        os.setsid()
        _close([self._requests_fd, self._reports_fd, *self._children])
        return self._entry


def _wait(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _take_channel() -> tuple[int, int]:
    """Move the pipes away from 0 and 1, so that a stray print cannot write into them."""
    requests_fd, reports_fd = os.dup(0), os.dup(1)
    redirect("/dev/null", os.O_RDONLY, to=(0,))
    os.dup2(2, 1)
    return requests_fd, reports_fd


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entry", required=True, help="module:function that a rank runs")
    parser.add_argument("--preload", required=True, help="what to load first, comma-separated")
    parser.add_argument("--parent", required=True, type=int, help="process id of the agent")
    return parser.parse_args()


def main() -> None:
    """Warm up, then serve until the agent closes the pipe or dies."""
    arguments = _arguments()
    die_with_parent(arguments.parent)
    adopt_orphans()
    started = time.monotonic()
    requests_fd, reports_fd = _take_channel()
    preload = tuple(filter(None, arguments.preload.split(",")))
    entry = load_entry(arguments.entry, preload=preload)
    server = ForkServer(entry=entry, requests_fd=requests_fd, reports_fd=reports_fd)
    # Objects that the collector never visits are never written to, so children share their pages.
    gc.collect()
    gc.freeze()
    threads = len(os.listdir("/proc/self/task"))
    server.report({"warm": time.monotonic() - started, "threads": threads})
    server.serve()
    os._exit(os.EX_OK)


if __name__ == "__main__":
    main()
