"""Uploaded data sets: parts in any order, sealed once, never removed from under a job."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played import Service

from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.contract.uploads.datasets import DatasetContent, DatasetPart
from roadless.service.datasets.tiling import file_of, is_whole, received
from roadless.service.scheduling.housekeeping import Housekeeping

CONTENT = bytes(range(256)) * 4


def create(service: Service, name: str = "corpus", format: str = "bytes") -> str:
    answer = service.post("/datasets", json={"name": name, "format": format})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def put(
    service: Service, dataset_id: str, content: bytes, *, offset: int = 0, name: str = "a.bin"
) -> Any:
    return service.http.put(
        f"/v1/datasets/{dataset_id}/files/{name}",
        params={"offset": offset},
        content=content,
        headers={**service.user, "X-Content-SHA256": hashlib.sha256(content).hexdigest()},
    )


def seal(service: Service, dataset_id: str) -> Any:
    return service.post(f"/datasets/{dataset_id}/seal")


def uploaded(service: Service, *, name: str = "corpus") -> str:
    dataset_id = create(service, name)
    assert put(service, dataset_id, CONTENT).status_code == 200
    assert seal(service, dataset_id).status_code == 200
    return dataset_id


def delete(service: Service, dataset_id: str) -> Any:
    return service.http.delete(f"/v1/datasets/{dataset_id}", headers=service.user)


def job_on(dataset_id: str) -> dict[str, Any]:
    return {
        "model": {"kind": "preset", "name": "gpt", "context": 8},
        "data": {"kind": "dataset", "dataset_id": dataset_id},
        "task": "causal_lm",
        "optimizer": {"name": "adamw_schedulefree"},
    }


# ---- files --------------------------------------------------------------------------------------


def test_parts_arrive_in_any_order_and_make_the_file(service: Service) -> None:
    dataset_id = create(service)
    assert put(service, dataset_id, CONTENT[600:], offset=600).json()["size"] == 0
    assert put(service, dataset_id, CONTENT[:600]).json()["size"] == len(CONTENT)
    sealed = seal(service, dataset_id).json()
    assert sealed["state"] == "sealed"
    assert (sealed["num_files"], sealed["total_bytes"]) == (1, len(CONTENT))
    assert sealed["files"] == [{"name": "a.bin", "size": len(CONTENT), "num_parts": 2}]


def test_a_part_that_comes_twice_is_there_once(service: Service) -> None:
    dataset_id = create(service)
    for _ in range(2):
        assert put(service, dataset_id, CONTENT).json()["num_parts"] == 1


def test_an_upload_that_was_cut_learns_what_is_there(service: Service) -> None:
    dataset_id = create(service)
    put(service, dataset_id, CONTENT[:100])
    answer = service.get(f"/datasets/{dataset_id}/files/a.bin").json()
    sha256 = hashlib.sha256(CONTENT[:100]).hexdigest()
    assert answer["parts"] == [{"offset": 0, "size": 100, "sha256": sha256}]
    assert service.get(f"/datasets/{dataset_id}/files/b.bin").status_code == 404


def test_the_same_request_again_continues_the_open_data_set(service: Service) -> None:
    assert create(service) == create(service)
    first = service.post("/datasets", json={"name": "new", "format": "csv"})
    again = service.post("/datasets", json={"name": "new", "format": "csv"})
    assert (first.status_code, again.status_code) == (201, 200)


def test_a_name_that_is_taken_otherwise_is_a_conflict(service: Service) -> None:
    uploaded(service)
    create(service, "open", "csv")
    for name, format in (("corpus", "bytes"), ("open", "jsonl")):
        answer = service.post("/datasets", json={"name": name, "format": format})
        assert answer.status_code == 409
        assert "expected an unused name" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([], "expected files"),
        ([(10, CONTENT)], "at byte 0"),
        ([(0, CONTENT[:9]), (10, CONTENT[10:])], "at byte 9"),
        ([(0, CONTENT[:11]), (10, CONTENT[10:])], "at byte 11"),
    ],
)
def test_a_file_with_a_gap_or_an_overlap_is_not_sealed(service, parts, problem) -> None:
    dataset_id = create(service)
    for offset, content in parts:
        put(service, dataset_id, content, offset=offset)
    answer = seal(service, dataset_id)
    assert answer.status_code == 409
    assert problem in answer.json()["detail"]
    assert service.get(f"/datasets/{dataset_id}").json()["state"] == "open"


def test_a_sealed_data_set_takes_no_more_and_is_sealed_again_without_change(service) -> None:
    dataset_id = uploaded(service)
    answer = put(service, dataset_id, b"more", offset=len(CONTENT))
    assert answer.status_code == 409
    assert "which is sealed" in answer.json()["detail"]
    assert seal(service, dataset_id).json() == service.get(f"/datasets/{dataset_id}").json()


def test_wrong_bytes_empty_parts_and_bad_names_are_refused(service: Service) -> None:
    dataset_id = create(service)
    url = f"/v1/datasets/{dataset_id}/files/a.bin"
    headers = {**service.user, "X-Content-SHA256": "0" * 64}
    answer = service.http.put(url, params={"offset": 0}, content=b"x", headers=headers)
    assert answer.status_code == 422
    assert "SHA-256" in answer.json()["detail"]
    assert put(service, dataset_id, b"").status_code == 422
    assert put(service, dataset_id, b"x", name=".hidden").status_code == 422
    assert put(service, dataset_id, b"x", offset=-1).status_code == 422
    assert service.get(f"/datasets/{dataset_id}").json()["num_files"] == 0


def test_parts_and_data_sets_have_bounds(service: Service, monkeypatch) -> None:
    dataset_id = create(service)
    monkeypatch.setattr("roadless.service.datasets.parts.MAX_PART_BYTES", 100)
    assert put(service, dataset_id, bytes(101)).status_code == 413
    monkeypatch.setattr("roadless.service.datasets.actions.MAX_PARTS", 1)
    assert put(service, dataset_id, b"x").status_code == 200
    answer = put(service, dataset_id, b"y", offset=1)
    assert answer.status_code == 413
    assert "at most 1 parts of a file" in answer.json()["detail"]
    monkeypatch.setattr("roadless.service.datasets.actions.MAX_FILES", 1)
    assert "at most 1 files" in put(service, dataset_id, b"y", name="b").json()["detail"]
    assert service.get(f"/datasets/{dataset_id}").json()["total_bytes"] == 1


def test_of_a_part_that_is_too_large_nothing_stays(service, settings, monkeypatch) -> None:
    """Its length is not announced: it is refused while it comes in."""
    dataset_id = create(service)
    monkeypatch.setattr("roadless.service.datasets.parts.MAX_PART_BYTES", 100)
    answer = service.http.put(
        f"/v1/datasets/{dataset_id}/files/a.bin",
        params={"offset": 0},
        content=iter([bytes(100), b"x"]),
        headers={**service.user, "X-Content-SHA256": "0" * 64},
    )
    assert answer.status_code == 413
    assert "expected a part of at most 100 bytes, saw more" in answer.json()["detail"]
    assert list(settings.uploads_dir.glob("*")) == files_of(settings.home_dir) == []
    assert service.get(f"/datasets/{dataset_id}").json()["num_files"] == 0


def test_lists_come_newest_first_in_pages(service: Service) -> None:
    ids = [create(service, f"set {number}") for number in range(3)]
    put(service, ids[0], CONTENT)
    first = service.get("/datasets", params={"limit": 2}).json()
    rest = service.get("/datasets", params={"limit": 2, "after": first["last_id"]}).json()
    assert [one["id"] for one in (*first["data"], *rest["data"])] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert rest["data"][0]["total_bytes"] == len(CONTENT)


parts = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=8)


@given(parts)
def test_what_is_received_is_what_lies_side_by_side_from_the_beginning(drawn) -> None:
    listed = [
        DatasetPart(offset=o, size=s, sha256="0" * 64) for o, s in sorted(dict(drawn).items())
    ]
    end = received(listed)
    covered = [byte for part in listed for byte in range(part.offset, part.offset + part.size)]
    assert covered[:end] == list(range(end))
    assert is_whole(listed) == (sorted(covered) == list(range(len(covered))))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_file_is_known_by_its_parts_hashes_in_order(sizes) -> None:
    hashes = [hashlib.sha256(bytes([size])).hexdigest() for size in sizes]
    made = [DatasetPart(offset=i, size=1, sha256=one) for i, one in enumerate(hashes)]
    file = file_of("a", made)
    assert file.sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert file.size == len(sizes)


# ---- jobs ---------------------------------------------------------------------------------------


def test_a_job_needs_a_sealed_data_set_of_its_project(service: Service) -> None:
    for dataset_id in (create(service), new_id("ds")):
        answer = service.post("/jobs", json=job_on(dataset_id))
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["pointer"] == "/data/dataset_id"
        assert "expected a sealed data set" in error["message"]


def test_ranks_read_the_parts_of_their_own_jobs_data_set(service: Service) -> None:
    dataset_id = create(service)
    put(service, dataset_id, CONTENT[:600])
    put(service, dataset_id, CONTENT[600:], offset=600)
    seal(service, dataset_id)
    other = uploaded(service, name="other")
    service.submit(job_on(dataset_id))
    rank = service.claim()

    def fetch(path: str, **params: Any) -> Any:
        return service.http.get(f"{rank.url}/datasets/{path}", params=params, headers=rank.headers)

    content = DatasetContent.model_validate_json(fetch(dataset_id).content)
    assert (content.dataset_id, content.format) == (dataset_id, "bytes")
    (file,) = content.files
    read = [fetch(f"{dataset_id}/files/{file.name}", offset=p.offset) for p in file.parts]
    assert b"".join(answer.content for answer in read) == CONTENT
    assert fetch(f"{dataset_id}/files/a.bin", offset=5).status_code == 404
    assert fetch(f"{dataset_id}/files/b.bin", offset=0).status_code == 404
    assert fetch(other).status_code == 404


def test_a_data_set_is_not_deleted_from_under_a_job(service: Service) -> None:
    dataset_id = uploaded(service)
    job_id = service.submit(job_on(dataset_id))
    answer = delete(service, dataset_id)
    assert answer.status_code == 409
    assert job_id in answer.json()["detail"]
    service.post(f"/jobs/{job_id}/cancel")
    assert delete(service, dataset_id).status_code == 204
    assert service.get(f"/datasets/{dataset_id}").status_code == 404
    assert service.post("/jobs", json=job_on(dataset_id)).status_code == 422


def test_a_data_set_that_a_job_is_evaluated_on_is_kept_and_read_like_the_first(
    service: Service,
) -> None:
    trained, shifted, last, other = (uploaded(service, name=name) for name in "abcd")
    sets = [{"name": f"set_{i}", "data": job_on(shifted)["data"]} for i in range(7)]
    sets.append({"name": "last", "data": job_on(last)["data"]})
    spec = {**job_on(trained), "evaluation": {"sets": sets}}
    open_one = create(service, "open")
    unsealed = [*sets[:2], {"name": "open", "data": job_on(open_one)["data"]}]
    answer = service.post("/jobs", json={**spec, "evaluation": {"sets": unsealed}})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/evaluation/sets/2/data/dataset_id"
    service.post(f"/jobs/{service.submit(job_on(other))}/cancel")
    job_id = service.submit(spec)
    rank = service.claim()
    seen = [
        service.http.get(f"{rank.url}/datasets/{dataset_id}", headers=rank.headers).status_code
        for dataset_id in (trained, shifted, last, other)
    ]
    assert seen == [200, 200, 200, 404]
    refused = delete(service, last)
    assert refused.status_code == 409
    assert job_id in refused.json()["detail"]


def test_deleting_removes_the_files(service: Service, settings: Any) -> None:
    dataset_id = uploaded(service)
    assert files_of(settings.home_dir)
    delete(service, dataset_id)
    assert files_of(settings.home_dir) == []
    assert create(service) != dataset_id


def files_of(home: Path) -> list[Path]:
    return [path for path in (home / "datasets").rglob("*") if path.is_file()]


# ---- what is left over --------------------------------------------------------------------------


def sweep(service: Service, settings: Any, *, later: timedelta) -> None:
    state = service.http.app.state  # type: ignore[attr-defined]
    housekeeping = Housekeeping(
        state.db, state.blobs, state.dataset_blobs, state.wheel_blobs, settings.uploads_dir
    )
    housekeeping.clean_up(utc_now() + later)


def test_an_open_data_set_can_be_continued_for_a_week(service: Service, settings: Any) -> None:
    dataset_id, kept = create(service), uploaded(service, name="sealed")
    put(service, dataset_id, CONTENT)
    sweep(service, settings, later=timedelta(days=6))
    assert service.get(f"/datasets/{dataset_id}").json()["total_bytes"] == len(CONTENT)
    sweep(service, settings, later=timedelta(days=8))
    assert service.get(f"/datasets/{dataset_id}").status_code == 404
    assert service.get(f"/datasets/{kept}").status_code == 200
    assert len(files_of(settings.home_dir)) == 1


def test_parts_that_nobody_lists_are_swept_once_nothing_can_list_them(service, settings) -> None:
    """A part was sent again with other bytes; while the data set is open the old may yet come."""
    dataset_id = create(service)
    put(service, dataset_id, b"wrong")
    put(service, dataset_id, b"right")
    sweep(service, settings, later=timedelta(hours=2))
    assert len(files_of(settings.home_dir)) == 2
    seal(service, dataset_id)
    sweep(service, settings, later=timedelta(minutes=30))
    assert len(files_of(settings.home_dir)) == 2
    sweep(service, settings, later=timedelta(hours=2))
    (left,) = files_of(settings.home_dir)
    assert left.read_bytes() == b"right"
