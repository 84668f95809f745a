"""Uploaded data sets as a rank fetches them from the service."""

import hashlib
from pathlib import Path

from service.contract.datasets import DatasetContent, DatasetFile, DatasetPart
from worker.api import AttemptApi, Refused, insist
from worker.data.progress import Tell
from worker.errors import DataNotFound, DataUnreadable


class ServiceUploads:
    """Fetches with the attempt's token; waits up to ``seconds`` for a service that is away."""

    def __init__(self, api: AttemptApi, *, seconds: float) -> None:
        self._api = api
        self._seconds = seconds

    def content(self, dataset_id: str) -> DatasetContent:
        """Return the format and the files of a sealed data set of the job's project."""
        found: list[DatasetContent] = []
        try:
            insist(lambda: found.append(self._api.dataset(dataset_id)), seconds=self._seconds)
        except Refused as error:
            raise DataNotFound(f"expected data set {dataset_id}, saw: {error.detail}") from error
        return found[0]

    def download(self, target: Path, *, dataset_id: str, file: DatasetFile, tell: Tell) -> None:
        """Write one of its files to ``target``, part by part, each checked against its hash."""
        with target.open("wb") as content:
            for part in file.parts:
                content.write(self._part(part, dataset_id=dataset_id, name=file.name))
                tell(f"{file.name} of {dataset_id}: {content.tell()} bytes are here")

    def _part(self, part: DatasetPart, *, dataset_id: str, name: str) -> bytes:
        found: list[bytes] = []

        def fetch() -> None:
            found.append(self._api.dataset_part(dataset_id, name=name, offset=part.offset))

        try:
            insist(fetch, seconds=self._seconds)
        except Refused as error:
            raise DataNotFound(f"expected {name} of {dataset_id}, saw: {error.detail}") from error
        if hashlib.sha256(found[0]).hexdigest() != part.sha256:
            raise DataUnreadable(
                f"expected {name} of {dataset_id} as it was uploaded, saw other bytes at "
                f"{part.offset}"
            )
        return found[0]
