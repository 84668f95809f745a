"""Uploaded data sets in the Python SDK: create, upload with resumption, list, delete."""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import httpx

from roadless.service.client.client import ApiError, Client, ClientError
from roadless.service.contract.checkpoint.manifest import FILE_NAME_PATTERN
from roadless.service.contract.job.data import Format
from roadless.service.contract.resources import Page
from roadless.service.contract.uploads.datasets import (
    MAX_PART_BYTES,
    MAX_PARTS,
    Dataset,
    DatasetFile,
    DatasetPart,
    NewDataset,
)

#: Large enough that a part costs one round trip, small enough to be sent again cheaply.
PART_BYTES = 16 * 2**20

OnProgress = Callable[[int], None]


class Datasets:
    """The data sets of the project that the client's token opens."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: What was uploaded under which name, by data set and name.
        self._sources: dict[tuple[str, str], Path] = {}

    def create(self, name: str, *, format: Format) -> Dataset:
        """Open a data set for files; one of this name that is still open is continued."""
        asked = NewDataset(name=name, format=format).model_dump(mode="json")
        headers = {"Idempotency-Key": secrets.token_urlsafe(18)}
        response = self._client.request("POST", "/v1/datasets", json=asked, headers=headers)
        return Dataset.model_validate_json(response.content)

    def upload(
        self, dataset_id: str, path: Path, *, name: str | None = None, on_progress: OnProgress
    ) -> None:
        """Upload a file in parts. Parts that are there already, by hash, are not sent again.

        Args:
            dataset_id: an open data set.
            path: the file.
            name: its name in the data set; None: the same as here.
            on_progress: called with how many bytes of the file are there.

        Raises:
            ClientError: the file is empty, or changes meanwhile; its name is none that a data set
                takes, or is that of another file that is there.
            ApiError: the service refused.
        """
        name = name or path.name
        self._require_own_name(dataset_id, path, name)
        url = f"/v1/datasets/{dataset_id}/files/{quote(name, safe='')}"
        size = path.stat().st_size
        if size == 0:
            raise ClientError(f"expected {path} to hold bytes, saw an empty file")
        known = {(part.offset, part.sha256) for part in self._parts(url)}
        sent: list[tuple[int, str]] = []
        for offset, content in _parts_of(path, size=size):
            sha256 = hashlib.sha256(content).hexdigest()
            if (offset, sha256) not in known:
                self._put(url, content, offset=offset, sha256=sha256)
            sent.append((offset, sha256))
            on_progress(offset + len(content))
        self._require_alone(url, sent, path=path, dataset_id=dataset_id)

    def _require_own_name(self, dataset_id: str, path: Path, name: str) -> None:
        """Two files of one name would replace each other."""
        _require_name(path, name)
        source = self._sources.setdefault((dataset_id, name), path.absolute())
        if source != path.absolute():
            raise ClientError(
                f"expected one file {name!r} in the data set, saw {source} and {path.absolute()}; "
                "rename one of them"
            )

    def _require_alone(
        self, url: str, sent: Sequence[tuple[int, str]], *, path: Path, dataset_id: str
    ) -> None:
        """An earlier upload of another file may have left parts that this one does not replace."""
        kept = [(part.offset, part.sha256) for part in self._parts(url)]
        if kept != sent:
            raise ClientError(
                f"expected the {len(sent)} parts of {path} alone under its name, saw {len(kept)}, "
                f"some of another file; delete {dataset_id} and upload again"
            )

    def _parts(self, url: str) -> Sequence[DatasetPart]:
        try:
            response = self._client.request("GET", url)
        except ApiError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return ()
            raise
        return DatasetFile.model_validate_json(response.content).parts

    def _put(self, url: str, content: bytes, *, offset: int, sha256: str) -> None:
        headers = {"X-Content-SHA256": sha256, "Content-Type": "application/octet-stream"}
        self._client.request(
            "PUT", url, params={"offset": offset}, content=content, headers=headers
        )

    def seal(self, dataset_id: str) -> Dataset:
        """Close it for files and open it for jobs."""
        response = self._client.request("POST", f"/v1/datasets/{dataset_id}/seal")
        return Dataset.model_validate_json(response.content)

    def get(self, dataset_id: str) -> Dataset:
        """The data set with its files."""
        response = self._client.request("GET", f"/v1/datasets/{dataset_id}")
        return Dataset.model_validate_json(response.content)

    def list(self) -> Iterator[Dataset]:
        """All data sets of the project, newest first; pages are fetched as they are needed."""
        after: str | None = None
        while True:
            params = {"limit": 200, **({"after": after} if after else {})}
            response = self._client.request("GET", "/v1/datasets", params=params)
            page = Page[Dataset].model_validate_json(response.content)
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def delete(self, dataset_id: str) -> None:
        """Delete it with its files; refused while a job that has not ended uses it."""
        self._client.request("DELETE", f"/v1/datasets/{dataset_id}")


def require_names(paths: Iterable[Path]) -> None:
    """Raise ClientError unless a data set can keep these files under their own names.

    Two of one name would replace each other, since a data set has no folders.
    """
    by_name: dict[str, Path] = {}
    for path in paths:
        _require_name(path, path.name)
        other = by_name.setdefault(path.name, path)
        if other is not path:
            raise ClientError(
                f"expected files of distinct names, since a data set has no folders, saw {other} "
                f"and {path}; rename one of them"
            )


def _require_name(path: Path, name: str) -> None:
    if not re.fullmatch(FILE_NAME_PATTERN, name):
        raise ClientError(
            f"expected a name of up to 128 letters, digits, '.', '_' and '-' for {path} in the "
            f"data set, saw {name!r}; rename the file"
        )


def _parts_of(path: Path, *, size: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a file with their offsets. Raises ClientError unless it keeps its size."""
    part_bytes = part_size(size)
    with path.open("rb") as file:
        for offset in range(0, size, part_bytes):
            content = file.read(part_bytes)
            if len(content) < min(part_bytes, size - offset):
                break
            yield offset, content
        if file.tell() != size or file.read(1):
            raise ClientError(f"expected {path} to keep its {size} bytes, saw it change")


def part_size(size: int) -> int:
    """Return how long the parts of a file of ``size`` bytes are; the last may be shorter."""
    smallest = -(-size // MAX_PARTS)
    if smallest > MAX_PART_BYTES:
        raise ClientError(
            f"expected a file of at most {MAX_PARTS * MAX_PART_BYTES} bytes, saw {size}"
        )
    return max(PART_BYTES, smallest)
