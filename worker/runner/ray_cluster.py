"""A private Ray head for one machine, run as child processes: ``roadless up``, the demo, tests.

Clusters of several machines are started by their operators; see ``deploy/``. A cluster started here
is protected by a token, and stopping it ends exactly the processes that it consists of.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from roadless.worker.processes import die_with_parent, read_tail, wait_pidfd

#: Ray puts Unix sockets below its temporary folder, and their paths are limited to 107 bytes.
_TEMP_ROOT = "/tmp"
_FOLDER_PREFIX = "roadless-"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 10.0
_OBJECT_STORE_BYTES = 100 * 2**20
#: In a node's folder: what ``ray start`` says, such as ``raylet [exit code=-9]``.
_LOG = "start.log"
_DEAD_PART = re.compile(r"\w+ \[exit code=-?\d+\]")
_LOCAL_NAMES = frozenset({"auto", "local"})

#: A dead node is noticed within 3 s. Draining a head that is stopped would take 30 s. The kernel's
#: out-of-memory killer picks ranks first, and Ray's memory monitor would kill their agent.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}
#: Ray (2.60) listens on loopback alone only where it takes clusters of several machines for
#: impossible, as on macOS; where it does not, even a given 127.0.0.1 becomes the machine's address.
_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class RayStartError(Exception):
    """A Ray node did not start; the message carries the end of its log."""


class NoCluster(Exception):
    """There is no Ray cluster at the address."""


class UnauthenticatedRay(Exception):
    """The Ray cluster is remote and accepts anybody who can reach it."""


class Head:
    """A running head, and the nodes that joined it on this machine."""

    def __init__(self, *, token_file: Path, folder: Path, is_alone: bool = False) -> None:
        self.address = ""  #: host:port; empty until the first node is up
        self._access = _authentication(token_file) | (_ON_LOOPBACK if is_alone else {})
        self.folder = folder  #: what the nodes write; gone once they are stopped
        self._nodes: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that a process needs to connect."""
        return {"RAY_ADDRESS": self.address, **self._access}

    def join(self, *, num_cpus: int, num_gpus: int = 0) -> subprocess.Popen[bytes]:
        """Start one more node on this machine; return its process once it is up."""
        return self.start_node([f"--address={self.address}", *_sizes(num_cpus, num_gpus)])

    def start_node(self, options: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run ``ray start`` with these options, and wait until the node is up."""
        folder = self.folder / str(len(self._nodes))
        process = _ray_start(options, folder=folder, environment=self._access)
        self._nodes.append(process)
        self.address = _wait_for_address(process, folder=folder)
        return process

    def wait(self) -> str:
        """Wait until a part of the first node dies, which ends the node; return which one."""
        code = self._nodes[0].wait()
        log = (self.folder / "0" / _LOG).read_text(errors="replace")
        return ", ".join(_DEAD_PART.findall(log)) or f"the node [exit code={code}]"

    def stop(self) -> None:
        """End all nodes and every process below them, and wait until they are gone."""
        stop_trees([node.pid for node in self._nodes if node.poll() is None])
        for node in self._nodes:
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_head(
    home: Path,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    port: int = 0,
    node_ip: str | None = None,
) -> Head:
    """Start a Ray head whose token is in ``home``; raise RayStartError when it does not start.

    One head at a time lives on a home.

    ``num_cpus``, ``num_gpus``: None for all of the machine's. ``port``: 0 for any. ``node_ip``: the
    address at which other nodes reach it; None: there are no others, and it listens on loopback.
    """
    token_file = home / "ray.token"
    _ensure_token(token_file)
    folder = _new_folder(home)
    head = Head(token_file=token_file, folder=folder, is_alone=node_ip is None)
    options = [f"--port={port}", "--include-dashboard=false"]
    options += [] if node_ip is None else [f"--node-ip-address={node_ip}"]
    try:
        head.start_node(["--head", *options, *_sizes(num_cpus, num_gpus)])
    except BaseException:
        head.stop()
        raise
    return head


def _new_folder(home: Path) -> Path:
    """A folder for the home's head, in place of what one that was killed has left."""
    note = home / "ray.folder"
    left = Path(note.read_text()) if note.exists() else Path()
    if left.parent == Path(_TEMP_ROOT) and left.name.startswith(_FOLDER_PREFIX):
        shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=_TEMP_ROOT)
    note.touch(mode=0o600)
    note.write_text(folder)
    return Path(folder)


def require_authentication(
    address: str, environ: Mapping[str, str], *, is_waived: bool = False
) -> None:
    """Raise UnauthenticatedRay for a cluster on another machine without a token, unless waived."""
    if is_waived or environ.get("RAY_AUTH_MODE") == "token" or _is_local(address):
        return
    raise UnauthenticatedRay(
        f"expected RAY_AUTH_MODE=token for the Ray cluster at {address}, which is on another "
        "machine; set ROADLESS_ALLOW_UNAUTHENTICATED_RAY=1 to connect without"
    )


def require_listening(address: str) -> None:
    """Raise NoCluster unless something listens at ``host:port``; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if address in _LOCAL_NAMES or "://" in address or not port.isdecimal():
        return  # Ray looks for it, or says what is wrong
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise no_cluster(address, error) from error


def no_cluster(address: str, error: Exception) -> NoCluster:
    """What a failure to connect means, in one line."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return NoCluster(f"expected a Ray cluster at RAY_ADDRESS, {address}; saw: {reason}")


def stop_trees(pids: Iterable[int]) -> None:
    """End these processes and all their descendants: SIGTERM to the roots, then SIGKILL to all."""
    roots = list(pids)
    # Listed before the first signal: a process that loses its parent cannot be found afterwards.
    everyone = [pid for root in roots for pid in (root, *_descendants(root))]
    pidfds = [fd for pid in everyone if (fd := _open_pid(pid)) is not None]
    for pid in roots:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    _wait_all(pidfds, timeout_seconds=_STOP_SECONDS)
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _wait_all(pidfds, timeout_seconds=_STOP_SECONDS)
    for pidfd in pidfds:
        os.close(pidfd)


def kill_descendants() -> None:
    """Kill all processes below this one and wait until they are gone.

    Those that have lost their own parent are among them if this process has adopted orphans.
    """
    deadline = time.monotonic() + _STOP_SECONDS
    while (below := _descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_POLL_SECONDS)


def _ray_start(
    options: Sequence[str], *, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
    command += ["--disable-usage-stats", "--include-log-monitor=false"]
    command += [f"--temp-dir={folder}", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    with (folder / _LOG).open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **RAY_ENVIRONMENT, **environment},
            start_new_session=True,
            # It ends what it has started, which a head that was killed cannot do.
            preexec_fn=partial(die_with_parent, os.getpid(), by=signal.SIGTERM),
        )


def _wait_for_address(process: subprocess.Popen[bytes], *, folder: Path) -> str:
    """Ray writes the cluster's address once everything is up."""
    address_file, deadline = folder / "ray_current_cluster", time.monotonic() + _START_SECONDS
    while not (address := address_file.read_text() if address_file.exists() else ""):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RayStartError(f"no Ray node: {read_tail(folder / 'start.log')}")
        time.sleep(_POLL_SECONDS)
    return address


def _sizes(num_cpus: int | None, num_gpus: int | None) -> list[str]:
    """Options for the resources that Ray schedules; it detects what is left out."""
    sizes = {"--num-cpus": num_cpus, "--num-gpus": num_gpus}
    return [f"{name}={number}" for name, number in sizes.items() if number is not None]


def _authentication(token_file: Path) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def _ensure_token(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def _is_local(address: str) -> bool:
    if address in _LOCAL_NAMES:
        return True
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(host) and all(_is_own(family, name) for family, _, _, _, name in found)


def _is_own(family: int, name: Any) -> bool:
    """Only this machine's own addresses can be bound."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(name)
        except OSError:
            return False
    return True


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return [found for child in children for found in (child, *_descendants(child))]


def _open_pid(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait_all(pidfds: Sequence[int], *, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    for pidfd in pidfds:
        wait_pidfd(pidfd, timeout_seconds=deadline - time.monotonic())
