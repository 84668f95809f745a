"""Settings are read once, from the environment, and a wrong one is named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from roadless.service.settings import Settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ROADLESS_{name.upper()}", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_nothing_need_be_set(tmp_path):
    settings = Settings()
    assert settings.home_dir == tmp_path / ".roadless"
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/.roadless/roadless.db"
    assert settings.uploads_dir == tmp_path / ".roadless" / "uploads"


def test_nobody_outside_this_machine_is_served_by_default():
    assert Settings().host == "127.0.0.1"


def test_the_environment_is_read_with_its_prefix(monkeypatch):
    monkeypatch.setenv("ROADLESS_HOME", "/srv/roadless")
    monkeypatch.setenv("ROADLESS_LEASE_SECONDS", "5.5")
    monkeypatch.setenv("PORT", "1")
    settings = Settings()
    assert (settings.home, settings.lease_seconds, settings.port) == (
        Path("/srv/roadless"),
        5.5,
        8700,
    )


def test_the_database_is_named_as_everywhere(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/roadless")
    assert Settings().resolved_database_url == "postgresql://db/roadless"


@pytest.mark.parametrize("url", ["s3://models", "s3://models/", "s3://my.models/a/b_c.d/"])
def test_a_bucket_is_named_by_its_url(monkeypatch, url):
    monkeypatch.setenv("ROADLESS_BLOBS", url)
    monkeypatch.setenv("ROADLESS_S3_ENDPOINT", "http://minio:9000")
    monkeypatch.setenv("ROADLESS_S3_PATH_STYLE", "true")
    settings = Settings()
    assert (settings.blobs, settings.s3_endpoint, settings.s3_region, settings.s3_path_style) == (
        url,
        "http://minio:9000",
        None,
        True,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("blobs", "/srv/blobs"),
        ("blobs", "s3://"),
        ("blobs", "s3://Bucket"),
        ("blobs", "s3://bucket/../other"),
        ("blobs", "s3://key:secret@bucket"),
        ("s3_endpoint", "minio:9000"),
        ("s3_path_style", "perhaps"),
        ("port", "70000"),
        ("port", "http"),
        ("lease_seconds", "0"),
        ("start_seconds", "-1"),
        ("stop_seconds", "soon"),
        ("tick_seconds", "0"),
        ("max_body_bytes", "0"),
        ("max_file_bytes", "0"),
        ("request_threads", "0"),
        ("report_threads", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(f"ROADLESS_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_a_runner_is_not_forgotten_before_its_attempts_are_lost(monkeypatch):
    monkeypatch.setenv("ROADLESS_FORGET_RUNNER_SECONDS", "29")
    with pytest.raises(ValidationError, match="FORGET_RUNNER_SECONDS >= 30, the lease, saw 29"):
        Settings()
