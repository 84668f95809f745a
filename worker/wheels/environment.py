"""Environments of uploaded wheels, kept on a node: the node's packages, and those of one wheel.

An environment is a venv on the node's interpreter in which only the wheel is installed; the node's
packages come after it. It is an environment, not a sandbox: code in it may do everything that the
node's user may.

It is created in place, since a venv cannot be moved, and its marker is written last. One lock per
wheel: shared by ranks while they live, exclusive to create or remove the environment. The kernel
releases a lock when its process ends.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from packaging.utils import parse_wheel_filename

from roadless.service.contract.states import Reason
from roadless.worker.errors import JobFailed, ModelInvalid
from roadless.worker.model.sources import WHEEL_MARKER
from roadless.worker.rank_launch import WheelFile
from roadless.worker.wheels.compatibility import require_fit, require_no_shadow

#: Environments kept on a node beside those in use.
MAX_ENVIRONMENTS = 8

_LOCK_SECONDS = 600.0
_INSTALL_SECONDS = 300.0
_POLL_SECONDS = 0.05
_SAID_LENGTH = 2000
_NODE_PACKAGES = "node_packages.pth"

#: Puts the wheel into a folder, and returns its path.
Fetch = Callable[[Path], Path]


class EnvironmentFailed(JobFailed):
    """The node cannot create an environment; another try, or another node, may."""

    reason = Reason.START_FAILED


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that is kept while ``lock`` is open, here or after this process's exec."""

    folder: Path
    lock: int

    @property
    def interpreter(self) -> Path:
        """The Python of the environment."""
        return _interpreter(self.folder)

    def release(self) -> None:
        """Release it, once this process no longer uses it."""
        os.close(self.lock)


def hold_environment(root: Path, wheel: WheelFile, *, fetch: Fetch) -> Environment:
    """Return the wheel's environment, and create it if needed.

    Args:
        root: the node's folder of environments.
        wheel: the wheel to install.
        fetch: called with the environment's folder when it has to be created.

    Raises:
        ModelInvalid: the wheel does not fit the node.
        EnvironmentFailed: the node is at fault.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = root / f"{wheel.sha256}-{_node_id()}"
    give_up_at = time.monotonic() + _LOCK_SECONDS
    while True:
        lock = _lock(folder, fcntl.LOCK_SH, give_up_at=give_up_at)
        if _is_ready(folder):
            os.set_inheritable(lock, True)
            os.utime(folder)
            return Environment(folder, lock)
        os.close(lock)
        with _exclusive(folder, give_up_at=give_up_at):
            if not _is_ready(folder):
                _make(folder, wheel, fetch=fetch)
        _remove_oldest(root)


def run_with_wheel(wheel: Path, *, root: Path, module: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process with a module of ours, run in the wheel's environment.

    ``root``: the node's folder of environments. Raises as ``hold_environment`` does.
    """
    with wheel.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = WheelFile(file_name=wheel.name, sha256=sha256)
    environment = hold_environment(
        root, facts, fetch=lambda folder: Path(shutil.copy(wheel, folder))
    )
    interpreter = str(environment.interpreter)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(interpreter, [interpreter, "-m", module, *arguments])


def _is_ready(folder: Path) -> bool:
    return (folder / WHEEL_MARKER).exists()


def _interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


# ---- making --------------------------------------------------------------------------------------


def _make(folder: Path, wheel: WheelFile, *, fetch: Fetch) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.EnvBuilder(symlinks=True).create(folder)
        file = fetch(folder)
        require_fit(file)
        _install(folder, file)
        file.unlink()
        packages = _packages_of(folder)
        distribution, *_ = parse_wheel_filename(wheel.file_name)
        require_no_shadow(packages, distribution=distribution)
        (packages / _NODE_PACKAGES).write_text(_add_folders(_node_packages()))
        _mark(folder, wheel)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise EnvironmentFailed(f"expected an environment in {folder}, saw: {error}") from error
    except JobFailed:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _install(folder: Path, file: Path) -> None:
    """Install the wheel and nothing else with the node's pip, ignoring all configuration of pip."""
    if importlib.util.find_spec("pip") is None:
        raise EnvironmentFailed(f"expected pip beside {sys.executable} on this node, saw none")
    command = [
        *(sys.executable, "-m", "pip", "--isolated", "--python", str(_interpreter(folder))),
        *("--disable-pip-version-check", "--no-input", "--no-cache-dir", "install"),
        *("--no-deps", "--no-index", "--no-warn-script-location", str(file)),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailed(
            f"expected pip to install {file.name} within {_INSTALL_SECONDS:g} s, saw it busy"
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SAID_LENGTH:]
        raise ModelInvalid(f"expected pip to install {file.name}, saw: {said}")


def _packages_of(folder: Path) -> Path:
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


def _node_packages() -> list[str]:
    """Folders of this interpreter's packages: a venv made from a venv does not see them."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [path for path in [*site.getsitepackages(), *user] if os.path.isdir(path)]


def _add_folders(paths: list[str]) -> str:
    """Lines for a ``.pth`` file: the folders come last, and their own ``.pth`` files apply."""
    return "".join(f"import site; site.addsitedir({path!r})\n" for path in paths)


def _mark(folder: Path, wheel: WheelFile) -> None:
    written = folder / f"{WHEEL_MARKER}.new"
    written.write_text(json.dumps({"sha256": wheel.sha256, "file_name": wheel.file_name}))
    written.rename(folder / WHEEL_MARKER)


def _node_id() -> str:
    """What an environment depends on: interpreter, packages, and this boot of the machine.

    An environment with other values is not reused: packages may be gone since, and files that were
    not on disk before a power failure are empty.
    """
    facts = [sys.executable, sys.version, Path("/proc/sys/kernel/random/boot_id").read_text()]
    facts += [f"{path} {os.stat(path).st_mtime_ns}" for path in _node_packages()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


# ---- locks ---------------------------------------------------------------------------------------


def _lock(folder: Path, kind: int, *, give_up_at: float) -> int:
    """Return the descriptor of the folder's lock, once it is ours."""
    while (lock := _try_lock(folder, kind)) is None:
        if time.monotonic() > give_up_at:
            raise EnvironmentFailed(
                f"expected the environment {folder} within {_LOCK_SECONDS:g} s, saw others busy "
                "with it"
            )
        time.sleep(_POLL_SECONDS)
    return lock


def _try_lock(folder: Path, kind: int) -> int | None:
    path = folder.with_suffix(".lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):  # else it was removed in between
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


@contextmanager
def _exclusive(folder: Path, *, give_up_at: float) -> Iterator[None]:
    lock = _lock(folder, fcntl.LOCK_EX, give_up_at=give_up_at)
    try:
        yield
    finally:
        os.close(lock)


def _remove_oldest(root: Path) -> None:
    """Remove all but the newest environments, unless they are in use."""
    folders = [path for path in root.iterdir() if path.is_dir()]
    folders.sort(key=_used_at, reverse=True)
    for folder in folders[MAX_ENVIRONMENTS:]:
        if (lock := _try_lock(folder, fcntl.LOCK_EX)) is None:
            continue
        (folder / WHEEL_MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
        os.close(lock)


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another process is removing it too
        return 0.0
