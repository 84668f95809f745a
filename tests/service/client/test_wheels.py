"""A wheel on its way: from a user's disk, by the SDK or the command line, to a rank's."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from played import Service
from wheel_maker import make_wheel

from roadless.service.client import ApiError, Client, ClientError, Wheels
from roadless.service.client import wheels as wheel_client
from roadless.service.settings import Settings
from roadless.worker.api import AttemptApi, Refused


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    return Settings(home=tmp_path / "home", DATABASE_URL=url, tick_seconds=3600, allow_wheels=True)


@pytest.fixture
def wheels(url: str, token: str) -> Iterator[Wheels]:
    with Client(url, token) as client:
        yield Wheels(client)


def test_wheels_go_up_are_listed_and_deleted(wheels: Wheels, tmp_path: Path) -> None:
    first = wheels.upload(make_wheel(tmp_path))
    second = wheels.upload(make_wheel(tmp_path, version="1.1+local"))
    assert wheels.upload(make_wheel(tmp_path)) == first
    assert wheels.get(second.id) == second
    assert second.file_name == "our_models-1.1+local-py3-none-any.whl"
    assert [wheel.id for wheel in wheels.list()] == [second.id, first.id]
    wheels.delete(first.id)
    with pytest.raises(ApiError) as caught:
        wheels.get(first.id)
    assert caught.value.status == 404


def test_pages_are_fetched_as_they_are_needed(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [wheels.upload(make_wheel(tmp_path, version=f"1.{n}")).id for n in range(3)]
    ask = Client.request

    def by_ones(client: Client, method: str, path: str, **options: Any) -> Any:
        return ask(client, method, path, **{**options, "params": {**options["params"], "limit": 1}})

    monkeypatch.setattr(Client, "request", by_ones)
    assert [wheel.id for wheel in wheels.list()] == ids[::-1]


def test_a_file_beyond_the_bound_is_refused_before_anything_is_sent(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_client, "MAX_WHEEL_BYTES", 100)
    with pytest.raises(ClientError, match="expected a wheel of at most 100 bytes"):
        wheels.upload(make_wheel(tmp_path))
    assert list(wheels.list()) == []


def test_a_rank_fetches_the_wheel_of_its_job(
    wheels: Wheels, service: Service, url: str, tmp_path: Path, digits_spec: dict[str, Any]
) -> None:
    path = make_wheel(tmp_path)
    model = {"kind": "entry_point", "factory": "our_models:small"}
    service.submit({**digits_spec, "model": {**model, "wheel": wheels.upload(path).id}})
    rank = service.claim()
    attempt_id, token = rank.assignment["attempt_id"], rank.assignment["token"]
    with AttemptApi(url, attempt_id=attempt_id, token=token) as api:
        api.download_wheel(tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == path.read_bytes()


def test_a_rank_of_a_job_without_a_wheel_is_told_so(
    service: Service, url: str, tmp_path: Path, digits_spec: dict[str, Any]
) -> None:
    service.submit(digits_spec)
    rank = service.claim()
    attempt_id, token = rank.assignment["attempt_id"], rank.assignment["token"]
    with (
        AttemptApi(url, attempt_id=attempt_id, token=token) as api,
        pytest.raises(Refused, match="has no wheel"),
    ):
        api.download_wheel(tmp_path / "fetched")


def test_the_command_line_uploads_lists_and_deletes(url: str, token: str, tmp_path: Path) -> None:
    def roadless(*arguments: str) -> tuple[int, str, str]:
        environment = {"ROADLESS_URL": url, "ROADLESS_TOKEN": token}
        done = subprocess.run(
            [sys.executable, "-m", "roadless.service.cli", "wheels", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        return done.returncode, done.stdout, done.stderr

    path = make_wheel(tmp_path)
    code, out, _ = roadless("upload", str(path))
    assert code == 0
    wheel_id = out.strip()
    assert wheel_id.startswith("whl_")
    code, out, _ = roadless("list")
    cells = out.strip().split("\t")
    assert (code, cells[:3]) == (0, [wheel_id, path.name, f"{path.stat().st_size} bytes"])
    assert roadless("delete", wheel_id)[:2] == (0, f"{wheel_id} deleted\n")
    bad = path.with_name("bad.whl")
    path.rename(bad)
    code, _, err = roadless("upload", str(bad))
    assert code == 2
    assert "NAME-VERSION-PYTHON-ABI-PLATFORM" in err
