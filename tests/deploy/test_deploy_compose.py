"""docker-compose.yml, as far as it can be judged without a container engine."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import composefile
import pytest
import yaml

from roadless.service.settings import Settings
from roadless.worker.runner import ray_cluster
from roadless.worker.settings import RunnerSettings

GPU_FILE = composefile.ROOT / "deploy" / "docker-compose.gpu.yml"
RAY_SERVICES = ("ray-head", "ray-worker")

POSTGRES_IMAGE_VARIABLES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
RAY_VARIABLES = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", *ray_cluster.RAY_ENVIRONMENT}

needs_docker_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed"
)


def docker_compose(
    arguments: list[str], *, variables: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run it away from the checkout, whose .env is the developer's own."""
    shutil.copy(composefile.COMPOSE_FILE, folder)
    return subprocess.run(
        ["docker-compose", "-f", "docker-compose.yml", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_docker_compose
@pytest.mark.parametrize("more", [[], ["-f", str(GPU_FILE)]], ids=["plain", "gpu"])
def test_docker_compose_accepts_the_file(more, secrets, tmp_path):
    done = docker_compose([*more, "config", "-q"], variables=secrets, folder=tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_docker_compose
@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "RAY_AUTH_TOKEN"])
def test_nothing_starts_without_a_secret(missing, secrets, tmp_path):
    del secrets[missing]
    done = docker_compose(["config", "-q"], variables=secrets, folder=tmp_path)
    assert done.returncode != 0
    assert "run deploy/make-env.sh" in done.stderr


@needs_docker_compose
def test_we_read_the_file_as_docker_compose_does(secrets, tmp_path):
    variables = {**secrets, "WORKER_CPUS": "7"}
    done = docker_compose(["config"], variables=variables, folder=tmp_path)
    theirs = yaml.safe_load(done.stdout)["services"]
    ours = composefile.services(variables)
    assert theirs.keys() == ours.keys()
    for key in ("command", "environment"):
        assert {name: theirs[name].get(key) for name in ours} == {
            name: service.get(key) for name, service in ours.items()
        }


def test_secrets_have_no_default():
    raw = yaml.safe_load(composefile.COMPOSE_FILE.read_text())["services"]
    secrets = [
        value
        for service in raw.values()
        for name, value in service.get("environment", {}).items()
        if re.search("PASSWORD$|TOKEN$|DATABASE_URL$", name)
    ]
    found = [composefile.VARIABLE.search(value) for value in secrets]
    assert {match and (match["name"], match["kind"]) for match in found} == {
        ("POSTGRES_PASSWORD", "?"),
        ("RAY_AUTH_TOKEN", "?"),
    }


def test_make_env_writes_different_secrets_each_time_for_the_owner_alone(secrets, tmp_path):
    seen = set()
    for name in ("one", "two"):
        script = tmp_path / name / "deploy" / "make-env.sh"
        script.parent.mkdir(parents=True)
        shutil.copy(composefile.ROOT / "deploy" / "make-env.sh", script)
        subprocess.run([script], check=True)
        written = tmp_path / name / ".env"
        assert written.stat().st_mode & 0o777 == 0o600
        values = dict(line.split("=") for line in written.read_text().splitlines())
        assert values.keys() == secrets.keys()
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values.values())
        seen |= set(values.values())
        assert subprocess.run([script], check=False, capture_output=True).returncode != 0
        assert dict(line.split("=") for line in written.read_text().splitlines()) == values
    assert len(seen) == 4


def test_only_the_service_is_published_and_only_on_loopback(secrets):
    ports = {
        name: service["ports"]
        for name, service in composefile.services(secrets).items()
        if "ports" in service
    }
    assert ports == {"service": ["127.0.0.1:8700:8700"]}


def test_no_service_uses_the_network_of_the_machine(secrets):
    modes = {service.get("network_mode") for service in composefile.services(secrets).values()}
    assert modes == {None, "none"}


def test_ranks_reach_neither_the_database_nor_the_services_volume(secrets):
    found = composefile.load(secrets)
    assert found["networks"]["database"] == {"internal": True}
    for name in RAY_SERVICES:
        service = found["services"][name]
        assert service["networks"] == ["training"]
        assert not any(mount.startswith("home:") for mount in service.get("volumes", []))


def test_the_services_volume_is_written_by_the_service_alone(secrets):
    mounts = {
        name: [mount for mount in service.get("volumes", []) if mount.startswith("home:")]
        for name, service in composefile.services(secrets).items()
    }
    assert {name: mount for name, mount in mounts.items() if mount} == {
        "service": ["home:/var/lib/roadless"],
        "runner-token": ["home:/var/lib/roadless:ro"],
    }


def test_every_environment_variable_is_read_by_somebody(secrets):
    readers = {
        "postgres": POSTGRES_IMAGE_VARIABLES,
        "service": service_variables(),
        "ray-head": RAY_VARIABLES | runner_variables(),
        "ray-worker": RAY_VARIABLES,
    }
    for name, service in composefile.services(secrets).items():
        unknown = service.get("environment", {}).keys() - readers.get(name, set())
        assert not unknown, f"{name}: {unknown}"


def service_variables() -> set[str]:
    return {
        str(field.validation_alias or f"ROADLESS_{name.upper()}")
        for name, field in Settings.model_fields.items()
    }


def runner_variables() -> set[str]:
    asked: set[str] = set()

    class Recorder(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return default

    RunnerSettings.from_environment(Recorder())
    return asked


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_ray_is_tuned_as_on_one_machine(name, secrets):
    environment = composefile.services(secrets)[name]["environment"]
    assert ray_cluster.RAY_ENVIRONMENT.items() <= environment.items()


def test_every_module_that_is_run_exists(secrets):
    commands = [service.get("command", []) for service in composefile.services(secrets).values()]
    commands += [composefile.image_command(path) for path in composefile.DOCKERFILES]
    text = "\n".join(" ".join(command) for command in commands)
    text += (composefile.ROOT / "deploy" / "ray-head.sh").read_text()
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert modules == {"roadless.service.main", "roadless.worker.runner"}
    assert all(importlib.util.find_spec(module) for module in modules)


def test_the_readme_explains_every_variable_of_the_file():
    readme = (composefile.ROOT / "deploy" / "README.md").read_text()
    names = {
        match["name"]
        for match in composefile.VARIABLE.finditer(composefile.COMPOSE_FILE.read_text())
    }
    assert {name for name in names if f"| `{name}` |" not in readme} == set()
