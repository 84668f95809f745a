"""Environments of wheels: made once, held by whoever uses them, beside the node's packages."""

import fcntl
import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from wheel_maker import make_wheel

from roadless.service.contract.states import RETRYABLE, Reason
from roadless.worker.errors import JobFailed, ModelInvalid
from roadless.worker.rank_launch import WheelFile
from roadless.worker.wheels import environment as wheel_environment
from roadless.worker.wheels.environment import EnvironmentFailed, hold_environment


class Shelf:
    """Counts how often a wheel is fetched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_fetched = 0

    @property
    def wheel(self) -> WheelFile:
        sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return WheelFile(file_name=self.path.name, sha256=sha256)

    def fetch(self, folder: Path) -> Path:
        self.num_fetched += 1
        return Path(shutil.copy(self.path, folder))


def hold(root: Path, shelf: Shelf) -> Path:
    """Its interpreter, as long as nobody else wants the room."""
    environment = hold_environment(root, shelf.wheel, fetch=shelf.fetch)
    environment.release()
    return environment.interpreter


def run(interpreter: Path, code: str) -> str:
    done = subprocess.run(
        [interpreter, "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "environments"


# ---- what is in it -------------------------------------------------------------------------------


def test_the_package_is_there_beside_those_of_the_node_and_nowhere_else(
    root: Path, tmp_path: Path
) -> None:
    """torch, numpy and our own packages are the very files of the node."""
    shelf = Shelf(make_wheel(tmp_path, requires=["numpy", 'absent; python_version < "3"']))
    interpreter = hold(root, shelf)
    names = ["numpy", "torch", "roadless", "roadless.worker", "roadless.optim"]
    code = f"""
import importlib.util, json, sys
from roadless.worker.model.sources import wheel_of_this_process
names = {[*names, "our_models"]!r}
found = {{name: importlib.util.find_spec(name).origin for name in names}}
print(json.dumps([found, wheel_of_this_process(), sys.version]))
"""
    seen, sha256, version = json.loads(run(interpreter, code))
    code = code.replace(', "our_models"', "").replace("'our_models'", "'numpy'")
    here, none, same_version = json.loads(run(Path(sys.executable), code))
    assert Path(seen.pop("our_models")).is_relative_to(interpreter.parent.parent)
    assert seen == here
    assert (sha256, none) == (shelf.wheel.sha256, None)
    assert version == same_version
    missing = subprocess.run(
        [sys.executable, "-c", "import our_models"], capture_output=True, check=False, cwd="/"
    )
    assert missing.returncode != 0


def test_it_is_made_once_and_found_again(root: Path, tmp_path: Path) -> None:
    shelf = Shelf(make_wheel(tmp_path))
    assert hold(root, shelf) == hold(root, shelf)
    assert shelf.num_fetched == 1


def test_many_at_once_make_it_once(root: Path, tmp_path: Path) -> None:
    """As the ranks of one node do."""
    shelf = Shelf(make_wheel(tmp_path))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(hold(root, shelf))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert shelf.num_fetched == 1


def test_one_that_another_has_made_meanwhile_is_not_made_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the lock."""
    shelf = Shelf(make_wheel(tmp_path))
    marker = hold(root, shelf).parent.parent / wheel_environment.WHEEL_MARKER
    marked, flock, num_made = marker.read_text(), fcntl.flock, 0
    marker.unlink()

    def made_before_the_lock(lock: int, kind: int) -> None:
        nonlocal num_made
        if kind & fcntl.LOCK_EX and not marker.exists():
            marker.write_text(marked)
            num_made += 1
        flock(lock, kind)

    monkeypatch.setattr(fcntl, "flock", made_before_the_lock)
    hold(root, shelf)
    assert num_made == 1
    assert shelf.num_fetched == 1


def test_what_a_crash_left_half_made_is_made_anew(root: Path, tmp_path: Path) -> None:
    shelf = Shelf(make_wheel(tmp_path))
    folder = hold(root, shelf).parent.parent
    (folder / wheel_environment.WHEEL_MARKER).unlink()
    (folder / "left.txt").write_text("half")
    assert run(hold(root, shelf), "import our_models; print(our_models.small.__name__)") == "small"
    assert not (folder / "left.txt").exists()


def test_another_set_of_packages_on_the_node_is_another_environment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the wheel requires may have gone."""
    shelf = Shelf(make_wheel(tmp_path))
    before = hold(root, shelf)
    packages = tmp_path / "more"
    packages.mkdir()
    known = site.getsitepackages()
    monkeypatch.setattr(site, "getsitepackages", lambda: [*known, str(packages)])
    second = hold(root, shelf)
    assert second != before
    os.utime(packages, (1, 1))
    assert hold(root, shelf) not in (before, second)


# ---- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"requires": ["absent-one", "numpy>=99", "absent-two>1; python_version > '3'"]}, None),
        ({"tag": "cp27-cp27mu-win32"}, "expected a wheel for this node, whose best tag is"),
        ({"requires_python": "<3"}, "expected Python <3"),
        ({"files": {"sklearn/__init__.py": ""}}, "saw sklearn (of a rank)"),
        ({"files": {"httpx/__init__.py": ""}}, "saw httpx (of"),
        ({"files": {"yaml/__init__.py": ""}}, "saw yaml (of PyYAML)"),
        ({"files": {"roadless.py": ""}}, "saw roadless (of a rank)"),
    ],
)
def test_a_wheel_that_does_not_fit_is_named_and_leaves_nothing(
    root: Path, tmp_path: Path, made: dict[str, object], words: str | None
) -> None:
    shelf = Shelf(make_wheel(tmp_path, **made))  # type: ignore[arg-type]
    with pytest.raises(ModelInvalid) as caught:
        hold(root, shelf)
    said = str(caught.value)
    if words is None:
        for part in ("no absent-one;", "for numpy>=99;", "no absent-two>1;", "nothing is fetched"):
            assert part in said
    else:
        assert words in said
    assert caught.value.reason not in RETRYABLE
    assert folders(root) == []


def test_another_version_of_its_own_package_on_the_node_gives_way(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a user can try a change of a package that the node has."""
    node = tmp_path / "node"
    node.mkdir()
    old = make_wheel(tmp_path, files={"our_models/__init__.py": "NUMBER = 1\n"})
    shutil.unpack_archive(old, node, "zip")
    known = site.getsitepackages()
    monkeypatch.setattr(site, "getsitepackages", lambda: [*known, str(node)])
    monkeypatch.syspath_prepend(node)
    new = make_wheel(tmp_path, version="2.0", files={"our_models/__init__.py": "NUMBER = 2\n"})
    assert run(hold(root, Shelf(new)), "import our_models; print(our_models.NUMBER)") == "2"


def test_what_pip_says_of_a_broken_wheel_is_told(root: Path, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, dist_info={"WHEEL": "Wheel-Version: 9.0\nTag: py3-none-any\n"})
    with pytest.raises(ModelInvalid, match=r"expected pip to install .*Wheel-Version"):
        hold(root, Shelf(wheel))


@pytest.mark.parametrize("fault", ["no pip", "no room", "slow"])
def test_a_fault_of_the_node_may_be_tried_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    shelf = Shelf(make_wheel(tmp_path))
    with monkeypatch.context() as patch:
        if fault == "no pip":
            patch.setattr("importlib.util.find_spec", lambda name: None)
        elif fault == "no room":
            patch.setattr(Shelf, "fetch", _full)
        else:
            patch.setattr(wheel_environment, "_INSTALL_SECONDS", 0.01)
        with pytest.raises(EnvironmentFailed) as caught:
            hold(root, shelf)
    assert caught.value.reason is Reason.START_FAILED
    assert caught.value.reason in RETRYABLE
    assert hold(root, shelf).exists()


def _full(shelf: Shelf, folder: Path) -> Path:
    raise OSError(28, "No space left on device")


def test_settings_of_pip_are_not_heeded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_REQUIRE_HASHES", "1")
    run(hold(root, Shelf(make_wheel(tmp_path))), "import our_models")
    assert not (tmp_path / "elsewhere").exists()


# ---- how long it stays ---------------------------------------------------------------------------

#: Holds the environment as a rank does, and executes its interpreter.
_HOLDER = """
import os
from pathlib import Path
from test_environment import Shelf
from roadless.worker.wheels.environment import hold_environment
shelf = Shelf(Path({wheel!r}))
interpreter = str(hold_environment(Path({root!r}), shelf.wheel, fetch=shelf.fetch).interpreter)
os.execv(interpreter, [interpreter, "-c", "print(1, flush=True); input()"])
"""


def test_the_oldest_go_but_never_one_in_use(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In use by a process that has executed the environment's interpreter."""
    monkeypatch.setattr(wheel_environment, "MAX_ENVIRONMENTS", 1)
    used, *others = (Shelf(make_wheel(tmp_path, version=f"1.{n}")) for n in range(4))
    tests = [str(folder) for folder in Path(__file__).parents[:3]]
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER.format(root=str(root), wheel=str(used.path))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(tests)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"1\n"
    hold(root, others[0])
    hold(root, others[1])
    assert {path.name[:64] for path in folders(root)} == {
        shelf.wheel.sha256 for shelf in (used, others[1])
    }
    holder.communicate()
    hold(root, others[2])
    (left,) = folders(root)
    assert left.name.startswith(others[2].wheel.sha256)
    assert list(root.glob("*.lock")) == [left.with_suffix(".lock")]


def folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()]


def test_waiting_for_others_has_an_end(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(make_wheel(tmp_path))
    monkeypatch.setattr(wheel_environment, "_LOCK_SECONDS", 0.2)
    waited: list[JobFailed] = []

    def slow(folder: Path) -> Path:
        with pytest.raises(EnvironmentFailed, match="saw others busy") as caught:
            hold(root, shelf)
        waited.append(caught.value)
        return shelf.fetch(folder)

    hold_environment(root, shelf.wheel, fetch=slow).release()
    assert len(waited) == 1
