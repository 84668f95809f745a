"""What has begun on a node, and what of it lives: locked files, since any process may die.

An agent claims an attempt before it starts its ranks, and a rank claims itself before it does
anything else; each keeps its claim locked for as long as it, or a process that it forked, lives.
So no rank begins twice, whoever asks for it and however often, and every agent of the node can tell
and kill what another one started, which may be dead or frozen. An attempt that is over has a mark,
and none of its ranks begins after that.

A folder is one attempt's on one node. Imported by every rank: standard library only.
"""

import fcntl
import os
import shutil
import signal
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Folder beside those of attempts; it has a mark for each that is over on this node.
OVER = "over"

_AGENT = "agent.claim"
_RANKS = "rank-*.claim"
_PID_BYTES = 20
#: ``struct flock``: type, whence, start, length, pid. Unlike flock(2), such a lock can be asked for
#: without being taken for a moment, which would be in the way of whoever wants it.
_LOCK = struct.Struct("hhqqi4x")
_SHARED = _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
_WHOLE_FILE = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class NotClaimed(Exception):
    """Somebody else has, or has had, this claim; or the attempt is over."""


def claim_rank(folder: Path, rank: int) -> None:
    """Claim a rank for this process, for as long as it lives; raise NotClaimed, or OSError.

    A process that has become another program by ``exec`` has its claim already.
    """
    path = _path(folder, rank)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        if _locked_by(os.getpid(), {path.resolve()}):
            return
        raise NotClaimed(f"expected the first process of rank {rank}, saw a claim of it") from error
    _try_lock(fd)
    _sign(fd)
    os.set_inheritable(fd, True)
    if is_over(folder):
        raise NotClaimed("expected a live attempt, saw that it is over on this node")


def claim_attempt(folder: Path) -> int:
    """Claim the attempt for this agent; ``give_up`` takes what this returns.

    Raises NotClaimed when another agent has it, and OSError, e.g. on a full disk.
    """
    _make_private(folder)
    with _closed_on_error(_open(folder / _AGENT)) as fd:
        if not _try_lock(fd):
            raise NotClaimed(f"expected a free attempt, saw that agent {_pid_of(fd)} has it")
        _sign(fd)
        return fd


def give_up(claim: int) -> None:
    """Give up the claim to an attempt; whoever waits for that is told that nobody has died."""
    try:
        os.ftruncate(claim, 0)
    finally:
        os.close(claim)


def wait_until_dead(folder: Path) -> bool:
    """Wait until no agent has the attempt; return whether the one that had it has died.

    It may last as long as the attempt, and is for a thread of its own.
    """
    with suppress(FileNotFoundError), _reading(folder / _AGENT) as fd:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _SHARED)
        return _pid_of(fd) is not None
    return False


def mark_over(folder: Path) -> None:
    """Let no rank of this folder's attempt begin any more; raises OSError, e.g. on a full disk."""
    mark = _mark(folder)
    _make_private(mark.parent)
    os.close(_open(mark))


def is_over(folder: Path) -> bool:
    """Whether this folder's attempt is over on this node."""
    return _mark(folder).exists()


def have_begun(folder: Path, ranks: Iterable[int]) -> bool:
    """Whether any of these ranks has ever begun, alive or not."""
    return any(_path(folder, rank).exists() for rank in ranks)


def is_live(folder: Path) -> bool:
    """Whether an agent has the attempt, whose ranks may be about to begin, or a rank lives."""
    return _is_locked(folder / _AGENT) or any(map(_is_locked, folder.glob(_RANKS)))


def live_pids(folder: Path) -> list[int]:
    """Return the processes of the attempt's live ranks, as far as their claims name them."""
    pids = (_pid_in(path) for path in folder.glob(_RANKS) if _is_locked(path))
    return [pid for pid in pids if pid is not None]


def clear(folder: Path) -> None:
    """Remove the claims of an attempt that is over, and of which nothing lives."""
    shutil.rmtree(folder, ignore_errors=True)


def kill(folder: Path) -> None:
    """Kill the attempt's live ranks and their groups, whichever agent has started them."""
    locked = {path.resolve() for path in folder.glob(_RANKS) if _is_locked(path)}
    holders = [pid for pid in live_pids(folder) if _locked_by(pid, locked)]
    if len(holders) < len(locked):  # a claim names nobody, or a dead rank that has left a fork
        holders = [pid for pid in _all_pids() if _locked_by(pid, locked)]
    for pid in holders:
        with suppress(ProcessLookupError), _opened(pid) as pidfd:
            # By now the number may be another process's.
            if _locked_by(pid, locked):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.killpg(pid, signal.SIGKILL)


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.claim"


def _mark(folder: Path) -> Path:
    return folder.parent / OVER / folder.name


def _make_private(folder: Path) -> None:
    """Make the folder and what is missing above it, each for its owner alone."""
    if not folder.parent.exists():
        _make_private(folder.parent)
    folder.mkdir(exist_ok=True, mode=0o700)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _sign(fd: int) -> None:
    """Name this process in its claim, if the disk has room; what counts is the lock."""
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)


def _try_lock(fd: int) -> bool:
    """Lock the file for whoever has this description of it: forks share it, and exec keeps it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_locked(path: Path) -> bool:
    with suppress(FileNotFoundError), _reading(path) as fd:
        found = _LOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE_FILE))
        return bool(found[0] != fcntl.F_UNLCK)
    return False


def _pid_in(path: Path) -> int | None:
    with suppress(FileNotFoundError), _reading(path) as fd:
        return _pid_of(fd)
    return None


def _pid_of(fd: int) -> int | None:
    text = os.pread(fd, _PID_BYTES, 0)
    return int(text) if text else None


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _locked_by(pid: int, claims: Collection[Path]) -> set[Path]:
    """Return which of these the process has locked, rather than open to look at.

    None for a process that is gone or somebody else's.
    """
    found: set[Path] = set()
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                info = Path(f"/proc/{pid}/fdinfo/{fd.name}")
                if (path := fd.readlink()) in claims and "OFDLCK" in info.read_text():
                    found.add(path)
    return found


@contextmanager
def _closed_on_error(fd: int) -> Iterator[int]:
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _opened(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)
