"""Data on its way: from a user's disk, by the SDK or the command line, to a rank's samples."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from played import Service
from pydantic import TypeAdapter

from roadless.service.client import (
    ApiError,
    Client,
    ClientError,
    Datasets,
    part_size,
    require_names,
)
from roadless.service.client import datasets as data_client
from roadless.service.contract.job.data import DataSpec
from roadless.service.contract.job.models import GptPreset
from roadless.worker.api import AttemptApi
from roadless.worker.data.build import build_data
from roadless.worker.errors import DataNotFound, DataUnreadable
from roadless.worker.evaluation.inputs import ServiceUploads
from roadless.worker.rank_launch import DataSources

CONTENT = bytes(range(256)) * 20


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def datasets(url: str, token: str) -> Iterator[Datasets]:
    with Client(url, token) as client:
        yield Datasets(client)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_client, "PART_BYTES", 1000)


def silent(num_bytes: int) -> None:
    """Hear nothing."""


def write(folder: Path, name: str = "a.bin", content: bytes = CONTENT) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def sealed(datasets: Datasets, *files: Path, name: str = "corpus") -> str:
    dataset = datasets.create(name, format="bytes")
    for file in files:
        datasets.upload(dataset.id, file, on_progress=silent)
    return datasets.seal(dataset.id).id


# ---- the SDK ------------------------------------------------------------------------------------


def test_a_file_goes_up_in_parts_and_progress_is_told(datasets, tmp_path):
    dataset = datasets.create("corpus", format="bytes")
    told: list[int] = []
    datasets.upload(dataset.id, write(tmp_path), on_progress=told.append)
    assert told == [1000, 2000, 3000, 4000, 5000, 5120]
    (file,) = datasets.seal(dataset.id).files
    assert (file.size, file.num_parts) == (5120, 6)
    assert [one.id for one in datasets.list()] == [dataset.id]


class Cutting(httpx.BaseTransport):
    """The network, which fails the ``cut``-th upload of a part for good."""

    def __init__(self, *, cut: int | None) -> None:
        self._inner = httpx.HTTPTransport()
        self._cut = cut
        self.num_parts = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            if self.num_parts == self._cut:
                raise httpx.ConnectError("the line is cut")
            self.num_parts += 1
        return self._inner.handle_request(request)


@pytest.mark.parametrize("cut", range(6))
def test_an_upload_that_was_cut_is_gone_on_with(url, token, tmp_path, cut):
    path = write(tmp_path)
    failing = Cutting(cut=cut)
    with (
        Client(url, token, transport=failing, sleep=lambda seconds: None) as client,
        pytest.raises(ClientError, match="the line is cut"),
    ):
        sealed(Datasets(client), path)
    again = Cutting(cut=None)
    with Client(url, token, transport=again) as client:
        dataset_id = sealed(Datasets(client), path)
        assert Datasets(client).get(dataset_id).total_bytes == len(CONTENT)
    assert (failing.num_parts, again.num_parts) == (cut, 6 - cut)


def test_a_part_that_changed_on_disk_is_sent_again(datasets, tmp_path):
    dataset = datasets.create("corpus", format="bytes")
    for content in (CONTENT, b"!" + CONTENT[1:]):
        datasets.upload(dataset.id, write(tmp_path, content=content), on_progress=silent)
    assert datasets.seal(dataset.id).total_bytes == len(CONTENT)


def test_a_second_file_of_one_name_is_refused_not_put_in_the_place_of_the_first(datasets, tmp_path):
    dataset = datasets.create("corpus", format="bytes")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "part.bin", folder.encode() * 10)
    datasets.upload(dataset.id, tmp_path / "a" / "part.bin", on_progress=silent)
    with pytest.raises(ClientError, match=r"one file 'part.bin' in the data set, saw .*a/part.bin"):
        datasets.upload(dataset.id, tmp_path / "b" / "part.bin", on_progress=silent)
    with pytest.raises(ClientError, match="rename one of them"):
        require_names([tmp_path / "a" / "part.bin", tmp_path / "b" / "part.bin"])
    datasets.upload(dataset.id, tmp_path / "b" / "part.bin", name="b.bin", on_progress=silent)
    assert [file.name for file in datasets.seal(dataset.id).files] == ["b.bin", "part.bin"]


def test_a_shorter_file_does_not_keep_the_end_of_the_one_that_was_there(url, token, tmp_path):
    """Two runs of the command with files of one name: parts of both would be sealed as one file."""
    long, short = write(tmp_path), write(tmp_path, "short.bin", CONTENT[::-1][:1000])
    with Client(url, token) as client:
        dataset = Datasets(client).create("corpus", format="bytes")
        Datasets(client).upload(dataset.id, long, on_progress=silent)
        with pytest.raises(ClientError, match=r"the 1 parts of .*short.bin alone .*, saw 6"):
            Datasets(client).upload(dataset.id, short, name="a.bin", on_progress=silent)


@pytest.mark.parametrize(
    "name", ["a?b#c.csv", "a#b.csv", "50%.csv", "a b.csv", "été.csv", ".a", "a\n"]
)
def test_a_name_that_no_url_or_data_set_takes_is_refused_not_cut(datasets, tmp_path, name):
    dataset = datasets.create("corpus", format="bytes")
    path = write(tmp_path, name)
    for refused in (
        lambda: datasets.upload(dataset.id, path, on_progress=silent),
        lambda: require_names([path]),
    ):
        with pytest.raises(ClientError) as caught:
            refused()
        assert f"saw {name!r}; rename the file" in str(caught.value)
    assert datasets.get(dataset.id).files == []
    datasets.upload(dataset.id, path, name="plain.csv", on_progress=silent)


@pytest.mark.parametrize("changed", [CONTENT[:-1], CONTENT + b"!", CONTENT[:500]])
def test_a_file_that_changes_its_size_meanwhile_is_refused(datasets, tmp_path, changed):
    dataset = datasets.create("corpus", format="bytes")
    path = write(tmp_path)

    def change(num_bytes: int) -> None:
        if num_bytes == 1000:
            path.write_bytes(changed)

    with pytest.raises(ClientError, match="to keep its 5120 bytes, saw it change"):
        datasets.upload(dataset.id, path, on_progress=change)


def test_an_empty_file_is_refused_before_anything_is_sent(datasets, tmp_path):
    dataset = datasets.create("corpus", format="bytes")
    with pytest.raises(ClientError, match="to hold bytes, saw an empty file"):
        datasets.upload(dataset.id, write(tmp_path, content=b""), on_progress=silent)


def test_deleting_twice_says_that_it_is_gone(datasets, tmp_path):
    dataset_id = sealed(datasets, write(tmp_path))
    datasets.delete(dataset_id)
    with pytest.raises(ApiError) as caught:
        datasets.delete(dataset_id)
    assert caught.value.status == 404


def test_parts_grow_with_the_file_up_to_the_largest(monkeypatch):
    monkeypatch.setattr(data_client, "PART_BYTES", 10)
    monkeypatch.setattr(data_client, "MAX_PARTS", 4)
    monkeypatch.setattr(data_client, "MAX_PART_BYTES", 100)
    assert [part_size(size) for size in (1, 40, 41, 400)] == [10, 10, 11, 100]
    with pytest.raises(ClientError, match="at most 400 bytes, saw 401"):
        part_size(401)


# ---- ranks --------------------------------------------------------------------------------------


def job_on(dataset_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": {"kind": "preset", "name": "gpt", "context": 8},
        "data": {"kind": "dataset", "dataset_id": dataset_id, **fields},
        "task": "causal_lm",
        "optimizer": {"name": "adamw_schedulefree"},
    }


@pytest.fixture
def uploads(service: Service, url: str, datasets: Datasets, tmp_path: Path):
    """The uploads of a job's rank, and the data set's id."""
    files = [write(tmp_path, "2.bin", CONTENT[::-1]), write(tmp_path, "1.bin")]
    dataset_id = sealed(datasets, *files)
    service.submit(job_on(dataset_id))
    rank = service.claim()
    with AttemptApi(
        url, attempt_id=rank.assignment["attempt_id"], token=rank.assignment["token"]
    ) as api:
        yield ServiceUploads(api, seconds=1), dataset_id


def build(uploads: ServiceUploads | None, dataset_id: str, folder: Path, **fields: Any):
    spec = job_on(dataset_id, **fields)
    return build_data(
        TypeAdapter(DataSpec).validate_python(spec["data"]),
        model=GptPreset.model_validate(spec["model"]),
        task="causal_lm",
        sources=DataSources(cache=str(folder / "cache")),
        uploads=uploads,
    )


def test_a_rank_trains_on_what_was_uploaded(uploads, tmp_path):
    found, dataset_id = uploads
    data = build(found, dataset_id, tmp_path)
    trained = data.train_batch(np.arange(data.num_train))
    assert (
        bytes(trained.inputs.flatten().tolist())
        == (CONTENT + CONTENT[::-1])[: trained.inputs.numel()]
    )
    held_out = build(found, dataset_id, tmp_path, files="1.*", eval={"path": "2.bin"})
    assert bytes(held_out.eval_batch(0, 1).inputs[0].tolist()) == CONTENT[::-1][:8]


def test_what_was_prepared_once_is_not_fetched_again(uploads, tmp_path, monkeypatch):
    found, dataset_id = uploads
    first = build(found, dataset_id, tmp_path).description
    monkeypatch.setattr(found, "download", lambda *_, **__: pytest.fail("expected no download"))
    assert build(found, dataset_id, tmp_path).description == first


def test_other_files_and_other_data_sets_are_not_found(uploads, tmp_path):
    found, dataset_id = uploads
    with pytest.raises(DataNotFound, match=r"match '\*.csv', saw 1.bin, 2.bin"):
        build(found, dataset_id, tmp_path, files="*.csv")
    with pytest.raises(DataNotFound, match="expected data set ds_"):
        found.content("ds_" + "0" * 26)


def test_bytes_that_differ_from_those_uploaded_are_not_trained_on(uploads, tmp_path, settings):
    found, dataset_id = uploads
    parts = [path for path in (settings.home_dir / "datasets").rglob("part") if path.is_file()]
    parts[0].write_bytes(bytes(parts[0].stat().st_size))
    with pytest.raises(DataUnreadable, match="as it was uploaded, saw other bytes at"):
        build(found, dataset_id, tmp_path)


def test_a_stranger_who_verifies_a_model_is_told_where_its_data_is(tmp_path):
    with pytest.raises(DataNotFound, match="expected the service that ds_"):
        build(None, "ds_" + "0" * 26, tmp_path)


# ---- the command line ---------------------------------------------------------------------------


def test_the_command_line_uploads_lists_and_deletes(url, token, service, tmp_path):
    def roadless(*arguments: str) -> tuple[int, str, str]:
        environment = {"ROADLESS_URL": url, "ROADLESS_TOKEN": token}
        command = [sys.executable, "-m", "roadless.service.cli", "data", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    write(tmp_path)
    write(tmp_path, "b.bin")
    code, out, err = roadless("upload", "corpus", "a.bin", "b.bin", "--format", "bytes")
    assert (code, err) == (0, "")
    dataset_id = out.strip()
    _, listed, _ = roadless("list")
    assert listed.split("\t")[:5] == [
        dataset_id,
        "corpus",
        "bytes",
        "sealed",
        "2 files, 10240 bytes",
    ]
    (tmp_path / "other").mkdir()
    write(tmp_path / "other")
    for names, said in (
        (("a.bin", "other/a.bin"), "expected files of distinct names"),
        (("a.bin", "a.bin"), "expected files of distinct names"),
        (("a?b#c.bin",), "rename the file"),
    ):
        write(tmp_path, "a?b#c.bin")
        code, _, err = roadless("upload", "refused", *names, "--format", "bytes")
        assert (code, said in err) == (1, True)
    assert "refused" not in roadless("list")[1]
    code, _, err = roadless("upload", "corpus", "a.bin", "--format", "bytes")
    assert code == 1
    assert "expected an unused name" in err
    job_id = service.submit(job_on(dataset_id))
    code, _, err = roadless("delete", dataset_id)
    assert (code, job_id in err) == (1, True)
    service.post(f"/jobs/{job_id}/cancel")
    assert roadless("delete", dataset_id) == (0, f"{dataset_id} deleted\n", "")
