"""Uploaded wheels: taken in where the operator allows it, and kept as long as jobs use them."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from played import Service
from wheel_maker import make_wheel

from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.contract.uploads.wheels import MAX_WHEEL_BYTES
from roadless.service.db.tables import WheelRow
from roadless.service.errors import Unavailable
from roadless.service.main import create_app
from roadless.service.scheduling.housekeeping import Housekeeping
from roadless.service.settings import Settings
from roadless.service.wheels import actions, upload


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home", DATABASE_URL=database_url, tick_seconds=3600, allow_wheels=True
    )


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path)


def put(service: Service, path: Path, *, name: str = "", sha256: str = "") -> Any:
    content = path.read_bytes()
    return service.http.put(
        f"/v1/wheels/{name or path.name}",
        content=content,
        headers={
            **service.user,
            "X-Content-SHA256": sha256 or hashlib.sha256(content).hexdigest(),
        },
    )


def uploaded(service: Service, path: Path) -> str:
    answer = put(service, path)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def spec_with(wheel_id: str, spec: dict[str, Any], **model: Any) -> dict[str, Any]:
    named = {"kind": "entry_point", "factory": "our_models:small", "wheel": wheel_id}
    return {**spec, "model": {**named, **model}}


def files_of(settings: Settings) -> list[Path]:
    home = settings.home_dir
    return [path for path in (home / "wheels").rglob("*") if path.is_file()]


def delete(service: Service, wheel_id: str) -> Any:
    return service.http.delete(f"/v1/wheels/{wheel_id}", headers=service.user)


def wheels_of(service: Service) -> list[str]:
    return [wheel["id"] for wheel in service.get("/wheels").json()["data"]]


# ---- upload --------------------------------------------------------------------------------------


def test_a_wheel_is_stored_and_shown(service, settings, wheel):
    answer = put(service, wheel)
    assert answer.status_code == 201
    shown = answer.json()
    assert answer.headers["Location"] == f"/v1/wheels/{shown['id']}"
    content = wheel.read_bytes()
    assert (shown["file_name"], shown["distribution"], shown["version"]) == (
        "our_models-1.0-py3-none-any.whl",
        "our-models",
        "1.0",
    )
    assert (shown["sha256"], shown["size"]) == (
        hashlib.sha256(content).hexdigest(),
        len(content),
    )
    assert service.get(f"/wheels/{shown['id']}").json() == shown
    (stored,) = files_of(settings)
    assert stored.read_bytes() == content
    assert list(settings.uploads_dir.iterdir()) == []


def test_the_same_wheel_again_is_the_same_and_another_build_is_another(service, tmp_path, wheel):
    first = uploaded(service, wheel)
    again = put(service, wheel)
    assert (again.status_code, again.json()["id"]) == (200, first)
    make_wheel(tmp_path, files={"our_models/__init__.py": "VERSION = 2\n"})
    second = uploaded(service, wheel)
    assert second != first
    assert wheels_of(service) == [second, first]


def test_wheels_are_listed_page_by_page_newest_first(service, tmp_path):
    ids = [uploaded(service, make_wheel(tmp_path, version=f"1.{n}")) for n in range(3)]
    first = service.get("/wheels?limit=2").json()
    second = service.get(f"/wheels?limit=2&after={first['last_id']}").json()
    assert [wheel["id"] for wheel in first["data"] + second["data"]] == ids[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("our_models-1.0.whl", "NAME-VERSION-PYTHON-ABI-PLATFORM"),
        ("our_models-one-py3-none-any.whl", "NAME-VERSION-PYTHON-ABI-PLATFORM"),
        ("other-1.0-py3-none-any.whl", "expected other 1.0 in"),
        ("our_models-1.1-py3-none-any.whl", "expected our-models 1.1 in"),
        ("our_models-1.0-py3-none-any.zip", "String should match pattern"),
    ],
)
def test_a_file_named_otherwise_is_refused(service, settings, wheel, name, words):
    answer = put(service, wheel, name=name)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert files_of(settings) == []


def test_other_bytes_than_announced_are_refused_and_nothing_stays(service, settings, wheel):
    answer = put(service, wheel, sha256="0" * 64)
    assert answer.status_code == 422
    assert "expected content with SHA-256 000" in answer.json()["detail"]
    assert list(settings.uploads_dir.iterdir()) == []
    assert wheels_of(service) == []


def test_a_wheel_beyond_the_bound_is_refused(service, settings, wheel, monkeypatch):
    monkeypatch.setattr(upload, "MAX_WHEEL_BYTES", 100)
    assert MAX_WHEEL_BYTES == 256 * 2**20
    answer = put(service, wheel)
    assert answer.status_code == 413
    assert list(settings.uploads_dir.iterdir()) == []


def test_a_project_has_a_bounded_number_of_wheels(service, tmp_path, monkeypatch):
    monkeypatch.setattr(actions, "MAX_WHEELS", 2)
    first = uploaded(service, make_wheel(tmp_path, version="1.0"))
    uploaded(service, make_wheel(tmp_path, version="1.1"))
    third = make_wheel(tmp_path, version="1.2")
    answer = put(service, third)
    assert answer.status_code == 409
    assert "fewer than 2 wheels" in answer.json()["detail"]
    assert delete(service, first).status_code == 204
    uploaded(service, third)


def test_nothing_is_taken_where_the_operator_does_not_allow_it(tmp_path, wheel, digits_spec):
    """As it is by default; what is there can be seen and deleted."""
    closed = Settings(home=tmp_path / "home", DATABASE_URL=None, tick_seconds=3600)
    assert closed.allow_wheels is False
    opened = closed.model_copy(update={"allow_wheels": True})
    with TestClient(create_app(opened)) as http:
        wheel_id = uploaded(Service(http, opened.home_dir), wheel)
    with TestClient(create_app(closed)) as http:
        service = Service(http, closed.home_dir)
        answer = put(service, wheel)
        assert (answer.status_code, answer.json()["type"]) == (
            403,
            "urn:roadless:problem:forbidden",
        )
        assert "ROADLESS_ALLOW_WHEELS" in answer.json()["detail"]
        refused = service.post("/jobs", json=spec_with(wheel_id, digits_spec))
        assert refused.status_code == 422
        (fault,) = refused.json()["errors"]
        assert fault["pointer"] == "/model/wheel"
        assert "ROADLESS_ALLOW_WHEELS" in fault["message"]
        assert wheels_of(service) == [wheel_id]
        assert delete(service, wheel_id).status_code == 204


# ---- jobs ----------------------------------------------------------------------------------------


def test_a_job_carries_the_hash_of_its_wheel_and_its_runner_hears_of_it(
    service, wheel, digits_spec
):
    wheel_id = uploaded(service, wheel)
    job_id = service.submit(spec_with(wheel_id, digits_spec))
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert service.job(job_id)["spec"]["model"]["wheel_sha256"] == sha256
    first = service.claim()
    again = service.claim()  # the answer was lost
    for rank in (first, again):
        assert rank.assignment["wheel"] == {
            "wheel_id": wheel_id,
            "file_name": wheel.name,
            "sha256": sha256,
        }
    answer = service.http.get(f"{again.url}/wheel", headers=again.headers)
    assert answer.content == wheel.read_bytes()
    assert answer.headers["Content-Length"] == str(len(wheel.read_bytes()))


def test_a_job_without_a_wheel_is_handed_out_without_one(service, wheel, digits_spec):
    uploaded(service, wheel)
    service.submit(digits_spec)
    rank = service.claim()
    assert rank.assignment["wheel"] is None
    answer = service.http.get(f"{rank.url}/wheel", headers=rank.headers)
    assert answer.status_code == 404


def test_the_wheel_of_an_attempt_that_is_over_is_not_told(service, wheel, digits_spec):
    service.submit(spec_with(uploaded(service, wheel), digits_spec))
    rank = service.claim()
    rank.ended()
    answer = service.http.get(f"{rank.url}/wheel", headers=rank.headers)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:roadless:problem:fenced")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"wheel": new_id("whl")}, "expected a wheel of this project"),
        ({"wheel_sha256": "0" * 64}, "as the hash of the wheel"),
    ],
)
def test_a_wheel_that_is_not_there_is_refused_with_its_place(
    service, wheel, digits_spec, model, message
):
    wheel_id = uploaded(service, wheel)
    answer = service.post("/jobs", json=spec_with(wheel_id, digits_spec, **model))
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["pointer"] == "/model/wheel"
    assert message in fault["message"]


def test_a_hash_without_a_wheel_is_refused(service, digits_spec):
    model = {"kind": "entry_point", "factory": "a:b", "wheel_sha256": "0" * 64}
    answer = service.post("/jobs", json={**digits_spec, "model": model})
    assert answer.status_code == 422
    assert "expected wheel_sha256 with wheel only" in answer.json()["detail"]


def test_a_wheel_in_use_is_not_deleted_until_its_jobs_have_ended(
    service, settings, wheel, digits_spec
):
    wheel_id = uploaded(service, wheel)
    job_id = service.submit(spec_with(wheel_id, digits_spec))
    refused = delete(service, wheel_id)
    assert refused.status_code == 409
    assert job_id in refused.json()["detail"]
    service.post(f"/jobs/{job_id}/cancel")
    assert delete(service, wheel_id).status_code == 204
    assert files_of(settings) == []
    assert service.get(f"/wheels/{wheel_id}").status_code == 404
    assert delete(service, wheel_id).status_code == 404


def test_a_job_whose_wheel_was_deleted_is_not_opened_again(service, wheel, digits_spec):
    wheel_id = uploaded(service, wheel)
    job_id, rank = service.running(spec_with(wheel_id, digits_spec))
    rank.report({"kind": "failed", "reason": "model_invalid", "message": "does not fit"})
    service.sync(released=[rank.assignment["attempt_id"]])
    assert service.phase(job_id) == "FAILED"
    assert delete(service, wheel_id).status_code == 204
    answer = service.post(f"/jobs/{job_id}/retry")
    assert answer.status_code == 409
    assert f"expected the wheel {wheel_id}" in answer.json()["detail"]
    assert service.phase(job_id) == "FAILED"


def test_a_job_that_starts_from_a_checkpoint_of_such_a_model_needs_the_wheel_too(
    service, wheel, digits_spec
):
    wheel_id = uploaded(service, wheel)
    job_id, rank = service.running(spec_with(wheel_id, digits_spec))
    checkpoint_id = rank.save(1)
    start = {**digits_spec, "model": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}
    second = service.submit(start)
    architecture = service.job(second)["spec"]["model"]["architecture"]
    assert architecture["wheel"] == wheel_id
    assert architecture["wheel_sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    service.post(f"/jobs/{job_id}/cancel")
    service.sync(released=[rank.assignment["attempt_id"]])
    refused = delete(service, wheel_id)
    assert refused.status_code == 409
    assert second in refused.json()["detail"]
    handed = service.sync()["start"]
    assert [one["wheel"]["wheel_id"] for one in handed] == [wheel_id]
    service.post(f"/jobs/{second}/cancel")
    service.sync(released=[one["attempt_id"] for one in handed])
    assert delete(service, wheel_id).status_code == 204
    refused = service.post("/jobs", json=start)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/model/checkpoint_id"


def test_another_projects_wheel_is_as_if_it_were_not_there(service, wheel, digits_spec):
    wheel_id = uploaded(service, wheel)
    with service.http.app.state.db.write() as session:
        session.get(WheelRow, wheel_id).project = "other"
    assert wheels_of(service) == []
    assert service.get(f"/wheels/{wheel_id}").status_code == 404
    assert delete(service, wheel_id).status_code == 404
    answer = service.post("/jobs", json=spec_with(wheel_id, digits_spec))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/model/wheel"
    assert put(service, wheel).json()["id"] != wheel_id


# ---- what crashes leave behind -------------------------------------------------------------------


def sweep(service: Service, settings: Settings, *, later: timedelta) -> None:
    state = service.http.app.state
    Housekeeping(
        state.db, state.blobs, state.dataset_blobs, state.wheel_blobs, settings.uploads_dir
    ).clean_up(utc_now() + later)


def test_a_wheel_that_was_deleted_only_in_part_is_used_by_nobody_and_swept(
    service, settings, wheel, digits_spec, monkeypatch
):
    wheel_id = uploaded(service, wheel)

    def fail(prefix: str) -> None:
        raise Unavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(service.http.app.state.wheel_blobs, "delete", fail)
        assert delete(service, wheel_id).status_code == 503
    assert wheels_of(service) == []
    assert service.post("/jobs", json=spec_with(wheel_id, digits_spec)).status_code == 422
    sweep(service, settings, later=timedelta(hours=2))
    assert files_of(settings) == []


def test_a_wheel_whose_file_never_came_or_just_went_is_swept_and_no_other(
    service, settings, wheel, tmp_path
):
    kept = uploaded(service, make_wheel(tmp_path, version="2.0"))
    broken = uploaded(service, wheel)
    with service.http.app.state.db.write() as session:
        session.get(WheelRow, broken).is_stored = False
    assert wheels_of(service) == [kept]
    assert service.get(f"/wheels/{broken}").status_code == 404
    sweep(service, settings, later=timedelta(minutes=59))
    assert len(files_of(settings)) == 2
    sweep(service, settings, later=timedelta(hours=2))
    assert [path.name for path in files_of(settings)] == ["our_models-2.0-py3-none-any.whl"]
    with service.http.app.state.db.read() as session:
        assert session.get(WheelRow, broken) is None
    assert wheels_of(service) == [kept]
