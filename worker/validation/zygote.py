"""A process that a rank forks before it has any state, and from which helpers are forked later.

A rank soon has threads, a process group, perhaps CUDA: a process forked from it then is broken or
shares what it should check. The zygote stays as the fork server made it: warm, with one thread, and
without a trace of the training. It belongs to the rank's session and process group; the kernel
kills it with the rank, and its children with it.

The rank asks for a process by sending one end of a socket pair, through which the child speaks; the
zygote forks, and answers with a pidfd of the child.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NoReturn

from roadless.worker.processes import die_with_parent

#: What a forked process does with its end of the connection; it exits when this returns.
Entry = Callable[[Connection], None]

#: The same as for threads beside training (``worker/background.py``).
NICENESS = 10
_FORK_SECONDS = 30.0
_REQUEST, _FORKED, _FAILED = b"?", b"+", b"-"


class ZygoteGone(Exception):
    """The zygote is dead or cannot fork; no further process comes from it."""


@dataclass(frozen=True)
class ForkedProcess:
    """A process that the zygote has forked. ``connection``: at end of file once it is dead."""

    connection: Connection
    pidfd: int

    def kill(self) -> None:
        """Kill it if it is alive, and close its file descriptors."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.connection.close()
        os.close(self.pidfd)


class Zygote:
    """The rank's end. Made while the rank has one thread; used by one thread at a time."""

    def __init__(self, entry: Entry) -> None:
        """Fork the zygote, whose children run ``entry``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        rank_pid = os.getpid()
        if os.fork() == 0:
            ours.close()
            _run_zygote(theirs, entry, rank_pid=rank_pid)
        theirs.close()
        ours.settimeout(_FORK_SECONDS)
        self._requests = ours

    def fork(self) -> ForkedProcess:
        """Have a fresh process forked; raises ZygoteGone."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._requests, [_REQUEST], [theirs.fileno()])
            answer, fds, _, _ = socket.recv_fds(self._requests, 1, 1)
        except OSError as error:
            ours.close()
            self._requests.close()  # else a late answer would be taken for the next one's
            raise ZygoteGone(f"expected the zygote to answer, saw {error}") from error
        if answer != _FORKED:
            ours.close()
            raise ZygoteGone("expected the zygote to fork a process, saw that it cannot")
        return ForkedProcess(Connection(ours.detach()), fds[0])


def _run_zygote(requests: socket.socket, entry: Entry, *, rank_pid: int) -> NoReturn:
    """Serve until the rank is gone; whatever happens, never return into the rank's code."""
    code = os.EX_SOFTWARE
    try:
        die_with_parent(rank_pid)
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        _serve(requests, entry)
        code = os.EX_OK
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve(requests: socket.socket, entry: Entry) -> None:
    while True:
        asked, fds, _, _ = socket.recv_fds(requests, 1, 1)
        if not asked:
            return
        _reap()
        with Connection(fds[0]) as connection:
            _fork(requests, connection, entry)


def _reap() -> None:
    """Reap dead children; their exit codes are not needed, and few wait for the next request."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _fork(requests: socket.socket, connection: Connection, entry: Entry) -> None:
    zygote_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        traceback.print_exc()
        requests.send(_FAILED)
        return
    if pid == 0:
        requests.close()
        _run_forked(connection, entry, zygote_pid=zygote_pid)
    pidfd = os.pidfd_open(pid)
    socket.send_fds(requests, [_FORKED], [pidfd])
    os.close(pidfd)


def _run_forked(connection: Connection, entry: Entry, *, zygote_pid: int) -> NoReturn:
    code = os.EX_SOFTWARE
    try:
        die_with_parent(zygote_pid)
        entry(connection)
        code = os.EX_OK
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
