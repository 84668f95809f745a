"""The runner's settings: defaults that work on one machine, and mistakes that are named."""

import threading
from pathlib import Path

import pytest

from roadless.worker.rank_launch import DataSources, ModelSources
from roadless.worker.settings import RunnerSettings, SettingsError


def test_defaults_are_those_of_one_machine() -> None:
    settings = RunnerSettings.from_environment({})
    assert settings.service_url == "http://127.0.0.1:8700"
    assert settings.runner_name == "default"
    assert settings.cluster is None
    assert settings.ray_address == "auto"
    assert settings.token_file == Path.home() / ".roadless" / "runner.token"
    assert settings.data_roots == ()
    assert settings.data_urls == ()
    assert settings.data_cache == "~/.roadless/data-cache"
    assert settings.data_cache_bytes == 100 * 2**30
    assert not settings.allow_unauthenticated_ray
    assert not settings.model_sources.allow_wheels
    assert settings.launcher == "fork"
    assert settings.standby_agent


def test_every_setting_is_read() -> None:
    settings = RunnerSettings.from_environment(
        {
            "ROADLESS_URL": "https://train.example/",
            "ROADLESS_RUNNER_NAME": "lab",
            "ROADLESS_CLUSTER": "rack-7",
            "ROADLESS_RUNNER_TOKEN": "secret",
            "ROADLESS_SCRATCH": "/fast",
            "ROADLESS_DATA_ROOTS": "/data:/more",
            "ROADLESS_DATA_URLS": " s3://bucket/a  https://files.example ",
            "ROADLESS_DATA_CACHE": "/fast/data",
            "ROADLESS_DATA_CACHE_BYTES": "1000",
            "RAY_ADDRESS": "10.0.0.1:6379",
            "ROADLESS_ALLOW_UNAUTHENTICATED_RAY": "1",
            "ROADLESS_ALLOW_WHEELS": "1",
            "ROADLESS_LAUNCHER": "spawn",
            "ROADLESS_STANDBY_AGENT": "0",
        }
    )
    assert settings.service_url == "https://train.example"
    assert (settings.runner_name, settings.scratch) == ("lab", "/fast")
    assert settings.cluster == "rack-7"
    assert settings.data_roots == ("/data", "/more")
    assert settings.data_sources == DataSources(
        roots=("/data", "/more"),
        urls=("s3://bucket/a", "https://files.example"),
        allow_hub=settings.allow_hub,
        cache="/fast/data",
        cache_bytes=1000,
    )
    assert settings.ray_address == "10.0.0.1:6379"
    assert settings.allow_unauthenticated_ray
    assert settings.model_sources.allow_wheels
    assert settings.launcher == "spawn"
    assert not settings.standby_agent
    assert settings.wait_for_token() == "secret"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROADLESS_URL", "train.example"),
        ("ROADLESS_ALLOW_WHEELS", "yes"),
        ("ROADLESS_LAUNCHER", "forkserver"),
        ("ROADLESS_LAUNCHER", ""),
        ("ROADLESS_ALLOW_UNAUTHENTICATED_RAY", "yes"),
        ("ROADLESS_DATA_URLS", "ftp://files.example"),
        ("ROADLESS_DATA_URLS", "https://files.example:70000"),
        ("ROADLESS_DATA_URLS", "s3://bucket:x/a"),
        ("ROADLESS_DATA_URLS", "http://:80/a"),
        ("ROADLESS_DATA_CACHE_BYTES", "0"),
        ("ROADLESS_DATA_CACHE_BYTES", "10GB"),
    ],
)
def test_unusable_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}.*{value}"):
        RunnerSettings.from_environment({name: value})


def test_what_models_may_be_made_of_is_nothing_unless_it_is_said() -> None:
    assert RunnerSettings.from_environment({}).model_sources == ModelSources()
    settings = RunnerSettings.from_environment(
        {
            "ROADLESS_MODEL_ROOTS": "/models:/more",
            "ROADLESS_ALLOW_HUB": "1",
            "ROADLESS_ALLOWED_ENTRY_POINTS": "ours.models:small, theirs:make",
        }
    )
    assert settings.model_sources == ModelSources(
        roots=("/models", "/more"),
        allow_hub=True,
        entry_points=("ours.models:small", "theirs:make"),
    )


@pytest.mark.parametrize("listed", ["ours.models", "ours:", ":make", "ours:make()", "a:b,c"])
def test_an_entry_point_that_names_no_function_is_a_mistake_of_the_operator(listed: str) -> None:
    with pytest.raises(SettingsError, match="ROADLESS_ALLOWED_ENTRY_POINTS"):
        RunnerSettings.from_environment({"ROADLESS_ALLOWED_ENTRY_POINTS": listed})


def test_token_file_that_appears_later_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "runner.token"
    settings = RunnerSettings.from_environment({"ROADLESS_RUNNER_TOKEN_FILE": str(path)})
    threading.Timer(0.2, path.write_text, ["secret\n"]).start()
    assert settings.wait_for_token(timeout_seconds=10) == "secret"


def test_missing_token_is_named_with_both_variables(tmp_path: Path) -> None:
    path = tmp_path / "runner.token"
    settings = RunnerSettings.from_environment({"ROADLESS_RUNNER_TOKEN_FILE": str(path)})
    with pytest.raises(SettingsError, match=r"ROADLESS_RUNNER_TOKEN .*ROADLESS_RUNNER_TOKEN_FILE"):
        settings.wait_for_token(timeout_seconds=0.1)


def test_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    settings = RunnerSettings.from_environment({"ROADLESS_RUNNER_TOKEN_FILE": str(tmp_path)})
    with pytest.raises(SettingsError, match="ROADLESS_RUNNER_TOKEN_FILE"):
        settings.wait_for_token()
