"""Secrets by the SDK and the command line: a value is never an argument, and never printed."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from played import Service
from secret_keeping import VALUE

from roadless.service.client import ApiError, Client, Secrets

Roadless = Callable[..., tuple[int, str]]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def secrets(url: str, settings: Any) -> Iterator[Secrets]:
    token = (settings.home_dir / "user.token").read_text().strip()
    with Client(url, token) as client:
        yield Secrets(client)


@pytest.fixture
def roadless(url: str, settings: Any) -> Roadless:
    """Runs ``roadless secrets`` to its end with this input: (exit code, all that it printed)."""
    environment = {"ROADLESS_URL": url, "ROADLESS_HOME": str(settings.home_dir)}

    def running(*arguments: str, stdin: str = "") -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "roadless.service.cli", "secrets", *arguments],
            env=os.environ | environment,
            input=stdin,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
        )
        return done.returncode, done.stdout

    return running


def handed(service: Service, spec: dict[str, Any], name: str) -> dict[str, str]:
    service.submit({**spec, "secrets": [name]})
    return service.claim().brief()["secrets"]


def test_a_secret_is_put_listed_and_deleted(secrets, service, digits_spec):
    secrets.put("HF_TOKEN", VALUE)
    secrets.put("A_KEY", VALUE)
    assert [secret.name for secret in secrets.list()] == ["A_KEY", "HF_TOKEN"]
    assert handed(service, digits_spec, "HF_TOKEN") == {"HF_TOKEN": VALUE}
    secrets.delete("A_KEY")
    assert [secret.name for secret in secrets.list()] == ["HF_TOKEN"]


def test_a_refusal_tells_what_was_expected_and_no_value(secrets):
    for name, value, expected in (("PATH", VALUE, "credential"), ("A_KEY", "abc", "at least 4")):
        with pytest.raises(ApiError) as caught:
            secrets.put(name, value)
        assert caught.value.status == 422
        assert expected in str(caught.value)
        assert VALUE not in str(caught.value)


def test_the_command_line_reads_a_value_from_a_pipe(roadless, service, digits_spec):
    """Without the line break of ``echo``; any other is part of the value."""
    code, printed = roadless("put", "HF_TOKEN", stdin=f"{VALUE}\nsecond line\n")
    assert code == 0, printed
    assert VALUE not in printed
    code, printed = roadless("list")
    assert code == 0
    assert printed.startswith("HF_TOKEN\t20")
    assert VALUE not in printed
    assert handed(service, digits_spec, "HF_TOKEN") == {"HF_TOKEN": f"{VALUE}\nsecond line"}


def test_the_command_line_deletes(roadless, secrets):
    secrets.put("A_KEY", VALUE)
    assert roadless("delete", "A_KEY") == (0, "A_KEY deleted\n")
    assert roadless("delete", "A_KEY")[0] == 1


def test_a_value_is_no_argument(roadless, secrets):
    code, _ = roadless("put", "HF_TOKEN", VALUE)
    assert code == 2
    assert list(secrets.list()) == []


def test_a_wrong_name_is_explained(roadless):
    code, printed = roadless("put", "LD_PRELOAD", stdin=VALUE)
    assert code == 2
    assert "does not begin with" in printed
    assert VALUE not in printed


def test_on_a_terminal_the_value_is_asked_for_and_not_shown(url, settings, secrets):
    ours, theirs = pty.openpty()
    environment = {"ROADLESS_URL": url, "ROADLESS_HOME": str(settings.home_dir)}
    process = subprocess.Popen(
        [sys.executable, "-m", "roadless.service.cli", "secrets", "put", "HF_TOKEN"],
        env=os.environ | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    printed = os.read(ours, 1000)
    while b"hidden" not in printed:
        printed += os.read(ours, 1000)
    os.write(ours, b"typed-value\n")
    process.wait(30)
    printed += os.read(ours, 1000)
    os.close(ours)
    assert process.returncode == 0, printed
    assert b"typed-value" not in printed
    assert [secret.name for secret in secrets.list()] == ["HF_TOKEN"]
