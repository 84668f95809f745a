"""One process that ``roadless up`` starts: its log, its deaths, its end."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

STOP_SECONDS = 20.0
#: A process that dies more often than this within RESTART_WINDOW_SECONDS is not restarted.
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 300.0
#: What children leave readable: nothing for others. They find tokens, data and models in the home.
UMASK = 0o077

_POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Child:
    """A process and its log file; it leads its own session, so that Ctrl-C reaches only us.

    Whoever kills us ends it too: the kernel then sends it SIGTERM.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        log: Path,
        environment: Callable[[], Mapping[str, str]],
    ) -> None:
        """``environment``: asked at every start."""
        self.name = name
        self._command = command
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0
        self._deaths: list[float] = []

    def start(self) -> None:
        """Start or restart the process."""
        with _private_log(self._log) as out:
            self._log_offset = out.tell()
            self._process = subprocess.Popen(
                self._command,
                # A user's queue.py in the current folder must not stand for Python's own: neither
                # here nor, by the variable, in what these processes start.
                env={**self._environment(), "PYTHONSAFEPATH": "1"},
                umask=UMASK,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_end_with, os.getpid()),
            )

    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def exit_code(self) -> int | None:
        """None while it runs, or was never started; negative for a signal."""
        return None if self._process is None else self._process.poll()

    def may_restart(self, now: float) -> bool:
        """Count a death; return whether there were few enough recently."""
        self._deaths = [at for at in self._deaths if now - at < RESTART_WINDOW_SECONDS] + [now]
        return len(self._deaths) <= MAX_RESTARTS

    def stop(self, *, is_urgent: Callable[[], bool], seconds: float = STOP_SECONDS) -> None:
        """Ask it to end; kill it when it has not within ``seconds``, or once that is urgent."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        give_up_at = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < give_up_at and not is_urgent():
            time.sleep(_POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def said(self) -> str:
        """What it has written since its latest start."""
        with self._log.open("rb") as log:
            log.seek(self._log_offset)
            return log.read().decode(errors="replace")

    def exit_report(self) -> str:
        """One line: that it died, how, its last words, and where its log is."""
        last = next((line for line in reversed(self.said().splitlines()) if line.strip()), "")
        said = f": {last.strip()}" if last else ""
        return f"the {self.name} exited with code {self.exit_code()}{said}; see {self._log}"

    def why_not(self, lack: str, *, seconds: float) -> str:
        """One line: that it was not ready in time, and what it lacked."""
        return (
            f"expected the {self.name} to be ready within {seconds:g} s, saw {lack}; "
            f"see {self._log}"
        )


def _private_log(path: Path) -> BinaryIO:
    """The log, open for appending; only its owner reads it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "ab")


def _end_with(parent_pid: int) -> None:
    """In the child: have the kernel end it with its parent, which may be dead by now."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(os.EX_UNAVAILABLE)
