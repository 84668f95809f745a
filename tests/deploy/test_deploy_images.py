"""The Dockerfiles, and the pins that they install with."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import composefile
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((composefile.ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = composefile.ROOT / "constraints.txt"
HADOLINT = Path(sys.executable).with_name("hadolint")

dockerfiles = pytest.mark.parametrize("path", composefile.DOCKERFILES, ids=lambda path: path.stem)


def installed_extras(path: Path) -> set[str]:
    """The extras that a Dockerfile installs the project with."""
    runs = [rest for word, rest in composefile.instructions(path) if word == "RUN"]
    lists = [match[1] for run in runs for match in re.finditer(r'"\.\[([^]]*)\]"', run)]
    return {extra.strip() for names in lists for extra in names.split(",")}


def everything_needed(texts: list[str]) -> dict[str, Requirement]:
    """These requirements and all below them, by name, as far as their packages are installed."""
    found: dict[str, Requirement] = {}
    queue = [Requirement(text) for text in texts]
    while queue:
        requirement = queue.pop()
        extras = requirement.extras or {""}
        marker = requirement.marker
        if marker is not None and not marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        if name in found and requirement.extras <= found[name].extras:
            continue
        found[name] = requirement
        queue += [below for text in _declared(name) for below in _asked(text, extras)]
    return found


def _declared(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _asked(text: str, extras: set[str]) -> list[Requirement]:
    requirement = Requirement(text)
    marker = requirement.marker
    is_asked = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
    requirement.marker = None
    return [requirement] if is_asked else []


def pins() -> dict[str, Requirement]:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, lines)}


@dockerfiles
def test_hadolint_finds_nothing(path):
    done = subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_install_what_they_need_and_no_more():
    extras = {path.stem: installed_extras(path) for path in composefile.DOCKERFILES}
    assert extras == {"service": {"service"}, "worker": {"worker", "data", "transformers"}}


def test_nothing_that_the_service_needs_needs_torch_or_ray():
    needed = everything_needed([*PROJECT["dependencies"], *EXTRAS["service"]])
    assert {"fastapi", "starlette", "numpy"} <= needed.keys()
    assert not {"torch", "ray"} & needed.keys()


@dockerfiles
def test_images_run_without_privileges_and_with_pinned_packages(path):
    parts = composefile.instructions(path)
    assert dict(parts)["USER"] == "10001"
    assert "useradd --uid 10001" in dict(parts)["RUN"]
    installs = [rest for word, rest in parts if word == "RUN" and "pip install" in rest]
    assert all("--constraint constraints.txt" in run or "--no-deps" in run for run in installs)


@dockerfiles
def test_the_build_context_is_what_the_image_copies_and_no_secret(path):
    lines = (composefile.ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert composefile.copied(path) <= let_in
    everything = set().union(*map(composefile.copied, composefile.DOCKERFILES))
    assert let_in == everything
    assert all((composefile.ROOT / name).exists() for name in let_in)


def test_every_package_of_every_extra_is_pinned():
    every = [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]
    assert everything_needed(every).keys() - pins().keys() == set()


def test_pins_are_exact_public_versions_that_the_project_accepts():
    every = [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]
    asked = {canonicalize_name(r.name): r.specifier for r in map(Requirement, every)}
    for name, pin in pins().items():
        (only,) = pin.specifier
        assert only.operator == "=="
        assert Version(only.version).local is None
        assert name not in asked or asked[name].contains(only.version), name


def test_pins_force_no_cuda_on_anybody():
    assert [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))] == []
