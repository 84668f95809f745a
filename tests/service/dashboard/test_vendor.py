"""The chart library: fetched by hashes, carried by the wheel, and missed in words."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from roadless.service import dashboard
from roadless.service.dashboard import vendor

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "service" / "dashboard"
#: What `pip wheel .` reads, with the links of src as links.
PROJECT = ["pyproject.toml", "setup.py", "README.md", "LICENSE"]
FOLDERS = ["src", "migrations", "optim", "service", "worker"]

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def nothing_fetched(monkeypatch, tmp_path) -> Path:
    """A checkout that was installed without `make setup`."""
    monkeypatch.setattr(vendor, "FOLDER", tmp_path)
    return tmp_path


def lock() -> dict[str, Any]:
    packages: dict[str, Any] = json.loads((SOURCES / "package-lock.json").read_text())["packages"]
    return packages


def test_every_locked_package_has_a_hash_and_no_host_of_a_mirror():
    packages = {name: entry for name, entry in lock().items() if name}
    assert {"node_modules/uplot", "node_modules/@biomejs/biome"} <= packages.keys()
    for name, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), name
        where = entry.get("resolved", "https://registry.npmjs.org/")
        assert where.startswith("https://registry.npmjs.org/"), name


def test_versions_are_exact_and_those_of_the_lock():
    asked = json.loads((SOURCES / "package.json").read_text())
    for kind in ("dependencies", "devDependencies"):
        assert asked[kind] == lock()[""][kind]
        for name, version in asked[kind].items():
            assert re.fullmatch(r"\d+\.\d+\.\d+", version), name
            assert lock()[f"node_modules/{name}"]["version"] == version


def test_what_is_served_is_what_the_lock_names():
    assert vendor.problem() is None
    version = lock()["node_modules/uplot"]["version"]
    assert f"(v{version})" in (vendor.FOLDER / "uplot.min.js").read_text()[:200]


@on_sqlite
def test_without_the_library_a_jobs_page_says_what_to_do(nothing_fetched, service):
    token = service.user["Authorization"].removeprefix("Bearer ")
    service.http.post("/login", data={"token": token})
    page = service.http.get("/jobs/job_01m7wwagpfqed9v2t28gt0kwvd").text
    assert "Run <code>make setup</code> in the checkout" in page
    assert "/static/vendor/" not in page
    for name in vendor.FILES:
        (nothing_fetched / name).touch()
    page = service.http.get("/jobs/job_01m7wwagpfqed9v2t28gt0kwvd").text
    assert "/static/vendor/uplot.min.js" in page
    assert "make setup" not in page


def test_without_the_library_the_log_says_what_to_do(nothing_fetched, caplog):
    dashboard.mount(FastAPI())
    assert "run `make setup`" in caplog.text


def project(folder: Path, *, has_charts: bool) -> Path:
    """A copy of what a wheel is built from."""
    skipped = ["__pycache__", "*.egg-info", *([] if has_charts else ["vendor"])]
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns(*skipped)
        )
    for name in PROJECT:
        shutil.copy(ROOT / name, folder)
    return folder


def built(source: Path, into: Path) -> subprocess.CompletedProcess[str]:
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(into)]
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_carries_the_library(tmp_path):
    done = built(project(tmp_path, has_charts=True), tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folder = "roadless/service/dashboard"
    assert {f"{folder}/static/vendor/{name}" for name in vendor.FILES} <= set(names)
    assert f"{folder}/static/style.css" in names
    assert not [name for name in names if name.endswith("package.json") or "biome" in name]


def test_no_wheel_is_built_without_the_library(tmp_path):
    done = built(project(tmp_path, has_charts=False), tmp_path)
    assert done.returncode != 0
    assert "run `make setup`" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))
