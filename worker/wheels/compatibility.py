"""Whether a wheel fits this node: its platform and Python, what it requires, what it would shadow.

Nothing is fetched for a wheel: what it requires is on the node, or the job fails and names what is
missing.
"""

import importlib.metadata
import platform
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from roadless.service.contract.uploads.wheels import reserved
from roadless.worker.errors import ModelInvalid


def require_fit(file: Path) -> None:
    """Raise ModelInvalid unless the wheel can be installed here, with everything it requires."""
    _require_platform(file)
    with zipfile.ZipFile(file) as archive:
        wheel = _distribution(archive)
        _require_python(file, wheel)
        _require_requirements(file, wheel)


def require_no_shadow(packages: Path, *, distribution: str) -> None:
    """Raise ModelInvalid if what is installed in ``packages`` would hide a package of the node.

    ``distribution``: the wheel's own name; another version of it on the node may be hidden.
    """
    names = set(_top_level(packages))
    owners = importlib.metadata.packages_distributions()
    own = canonicalize_name(distribution)
    hidden = {
        name: sorted(others)
        for name in names
        if (others := {owner for owner in owners.get(name, ()) if canonicalize_name(owner) != own})
    }
    hidden |= {name: ["a rank"] for name in reserved(names)}
    if hidden:
        said = ", ".join(f"{name} (of {', '.join(hidden[name])})" for name in sorted(hidden))
        raise ModelInvalid(
            f"expected the wheel of {distribution} to hide no package of this node, saw {said}"
        )


def _require_platform(file: Path) -> None:
    *_, tags = parse_wheel_filename(file.name)
    if tags.isdisjoint(sys_tags()):
        best = next(iter(sys_tags()))
        raise ModelInvalid(
            f"expected a wheel for this node, whose best tag is {best}, saw {file.name}"
        )


def _distribution(archive: zipfile.ZipFile) -> importlib.metadata.Distribution:
    """The wheel's metadata; the service has checked that there is one such folder."""
    (folder,) = {
        name.partition("/")[0]
        for name in archive.namelist()
        if name.partition("/")[0].endswith(".dist-info")
    }
    return importlib.metadata.PathDistribution(zipfile.Path(archive, f"{folder}/"))


def _require_python(file: Path, wheel: importlib.metadata.Distribution) -> None:
    (wanted,) = wheel.metadata.get_all("Requires-Python", [""])[:1]
    seen = platform.python_version()
    if not SpecifierSet(wanted).contains(seen, prereleases=True):
        raise ModelInvalid(f"expected Python {wanted} for {file.name}, saw {seen} on this node")


def _require_requirements(file: Path, wheel: importlib.metadata.Distribution) -> None:
    missing = list(_missing(wheel.requires or ()))
    if missing:
        raise ModelInvalid(
            f"expected on this node what {file.name} requires, saw {'; '.join(missing)}; "
            "nothing is fetched for a wheel"
        )


def _missing(requirements: Iterable[str]) -> Iterator[str]:
    """Each unmet requirement, with what is installed instead."""
    for line in requirements:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        seen = _version(wanted.name)
        if seen is None:
            yield f"no {wanted.name}{wanted.specifier}"
        elif not wanted.specifier.contains(seen, prereleases=True):
            yield f"{wanted.name} {seen} for {wanted.name}{wanted.specifier}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _top_level(packages: Path) -> Iterator[str]:
    """Names that can be imported from the folder, except folders that only add to a namespace."""
    for path in packages.iterdir():
        if path.is_dir():
            if any(path.glob("__init__.*")):
                yield path.name
        elif path.suffix in (".py", ".so", ".pyc"):
            yield path.name.partition(".")[0]
