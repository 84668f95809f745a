"""A process that a rank forks before it becomes anything, and from which helpers are forked later.

A rank soon has threads, a process group, perhaps CUDA: whatever is forked from it then is broken or
shares what it should check. The nursery stays as the fork server has made it: warm, with one
thread, and without a trace of the training. It belongs to the rank's session and process group, and
the kernel kills it with the rank, and with it what it has forked.

The rank asks for a process by sending one end of a socket pair, through which the child speaks; the
nursery forks, and answers with a pidfd of the child.
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

#: As that of the threads beside training (``worker/background.py``).
NICENESS = 10
_BIRTH_SECONDS = 30.0
_REQUEST, _BORN, _FAILED = b"?", b"+", b"-"


class NurseryGone(Exception):
    """The nursery is dead or cannot fork; no further process comes from it."""


@dataclass(frozen=True)
class Newborn:
    """A process that the nursery has forked. ``connection``: at its end when the process dies."""

    connection: Connection
    pidfd: int

    def kill(self) -> None:
        """Kill it, if it lives, and let go of it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.connection.close()
        os.close(self.pidfd)


class Nursery:
    """The rank's end. Made while the rank has one thread; used by one thread at a time."""

    def __init__(self, entry: Entry) -> None:
        """Fork the nursery, whose children run ``entry``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        rank_pid = os.getpid()
        if os.fork() == 0:
            ours.close()
            _be_nursery(theirs, entry, rank_pid=rank_pid)
        theirs.close()
        ours.settimeout(_BIRTH_SECONDS)
        self._requests = ours

    def give_birth(self) -> Newborn:
        """Have a fresh process forked; raises NurseryGone."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._requests, [_REQUEST], [theirs.fileno()])
            answer, fds, _, _ = socket.recv_fds(self._requests, 1, 1)
        except OSError as error:
            ours.close()
            self._requests.close()  # an answer that comes later would be taken for the next one's
            raise NurseryGone(f"expected the nursery to answer, saw {error}") from error
        if answer != _BORN:
            ours.close()
            raise NurseryGone("expected the nursery to fork a process, saw that it cannot")
        return Newborn(Connection(ours.detach()), fds[0])


def _be_nursery(requests: socket.socket, entry: Entry, *, rank_pid: int) -> NoReturn:
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
    """Let go of the dead; nobody asks how they died, and few wait for the next request."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _fork(requests: socket.socket, connection: Connection, entry: Entry) -> None:
    nursery_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        traceback.print_exc()
        requests.send(_FAILED)
        return
    if pid == 0:
        requests.close()
        _be_newborn(connection, entry, nursery_pid=nursery_pid)
    pidfd = os.pidfd_open(pid)
    socket.send_fds(requests, [_BORN], [pidfd])
    os.close(pidfd)


def _be_newborn(connection: Connection, entry: Entry, *, nursery_pid: int) -> NoReturn:
    code = os.EX_SOFTWARE
    try:
        die_with_parent(nursery_pid)
        entry(connection)
        code = os.EX_OK
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
