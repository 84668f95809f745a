"""Process helpers: die with the parent, adopt orphans, wait for an end, read and write logs.

Used by whatever forks and spawns ranks, and by ranks themselves: standard library only.
"""

import ctypes
import logging
import os
import select
import signal
from pathlib import Path

_LOG_TAIL_BYTES = 4000
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int, *, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send ``by`` to this process when ``parent_pid`` dies; exit if it is dead.

    To the kernel, the parent is the thread that forked: it must live as long as its process.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent_pid:
        os._exit(os.EX_UNAVAILABLE)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants of this process, so that they can be waited for."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def wait_gone(pid: int, *, timeout_seconds: float) -> bool:
    """Wait until the process is dead; return whether it is. ``pid`` 0: never started."""
    if pid == 0:
        return True
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return wait_pidfd(pidfd, timeout_seconds=timeout_seconds)
    finally:
        os.close(pidfd)


def wait_pidfd(pidfd: int, *, timeout_seconds: float) -> bool:
    """Wait until the process behind ``pidfd`` is dead; return whether it is."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_seconds) * 1000))


def read_tail(path: Path) -> str:
    """Return the last 4000 bytes of a log as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def configure_logging() -> None:
    """Log to standard error with time and level, without httpx's line for each request."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
