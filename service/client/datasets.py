"""Uploaded data sets in the Python SDK: create, upload with resumption, list, delete."""

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx

from roadless.service.client.client import ApiError, Client, ClientError
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
            ClientError: the file is empty.
            ApiError: the service refused.
        """
        url = f"/v1/datasets/{dataset_id}/files/{name or path.name}"
        size = path.stat().st_size
        if size == 0:
            raise ClientError(f"expected {path} to hold bytes, saw an empty file")
        part_bytes = part_size(size)
        known = {(part.offset, part.sha256) for part in self._parts(url)}
        with path.open("rb") as file:
            for offset in range(0, size, part_bytes):
                content = file.read(part_bytes)
                sha256 = hashlib.sha256(content).hexdigest()
                if (offset, sha256) not in known:
                    self._put(url, content, offset=offset, sha256=sha256)
                on_progress(offset + len(content))

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


def part_size(size: int) -> int:
    """Return how long the parts of a file of ``size`` bytes are; the last may be shorter."""
    smallest = -(-size // MAX_PARTS)
    if smallest > MAX_PART_BYTES:
        raise ClientError(
            f"expected a file of at most {MAX_PARTS * MAX_PART_BYTES} bytes, saw {size}"
        )
    return max(PART_BYTES, smallest)
