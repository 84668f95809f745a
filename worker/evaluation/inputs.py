"""What a rank builds from: data sets of its node or of the service, and sources of models.

The evaluator process builds from the same inputs, so that both see the same samples.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.uploads.datasets import DatasetContent, DatasetFile, DatasetPart
from roadless.worker.api import AttemptApi, Refused
from roadless.worker.data.build import build_data
from roadless.worker.data.progress import Tell
from roadless.worker.errors import DataNotFound, DataUnreadable
from roadless.worker.evaluation.sets import Datasets, build_datasets
from roadless.worker.model.sources import wheel_of_this_process
from roadless.worker.rank_launch import ModelSources, RankLaunch
from roadless.worker.retry import call_with_retry

#: How long a starting rank waits for a service that is away.
START_SECONDS = 60.0


def datasets_of(
    launch: RankLaunch, brief: AttemptBrief, api: AttemptApi, *, say: Callable[[str], None]
) -> Datasets:
    """Build the data set, and everything else that is evaluated.

    ``say``: called periodically with the progress of a long preparation.
    """
    build = partial(
        build_data,
        model=brief.spec.model,
        task=brief.spec.task,
        sources=replace(
            launch.data_sources, project=brief.spec.project, secrets=brief.spec.secrets
        ),
        uploads=ServiceUploads(api, seconds=START_SECONDS),
        say=say,
    )
    return build_datasets(brief.spec, build=build, sources=model_sources(launch))


def model_sources(launch: RankLaunch) -> ModelSources:
    """Return where this node's operator allows models to come from."""
    return replace(launch.model_sources, wheel_sha256=wheel_of_this_process())


class ServiceUploads:
    """Fetches with the attempt's token; waits up to ``seconds`` for a service that is away."""

    def __init__(self, api: AttemptApi, *, seconds: float) -> None:
        self._api = api
        self._seconds = seconds

    def content(self, dataset_id: str) -> DatasetContent:
        """Return the format and the files of a sealed data set of the job's project."""
        try:
            return call_with_retry(lambda: self._api.dataset(dataset_id), seconds=self._seconds)
        except Refused as error:
            raise DataNotFound(f"expected data set {dataset_id}, saw: {error.detail}") from error

    def download(self, target: Path, *, dataset_id: str, file: DatasetFile, tell: Tell) -> None:
        """Write one of its files to ``target``, part by part, each checked against its hash."""
        with target.open("wb") as content:
            for part in file.parts:
                content.write(self._part(part, dataset_id=dataset_id, name=file.name))
                tell(f"{file.name} of {dataset_id}: {content.tell()} bytes are here")

    def _part(self, part: DatasetPart, *, dataset_id: str, name: str) -> bytes:
        def fetch() -> bytes:
            return self._api.dataset_part(dataset_id, name=name, offset=part.offset)

        try:
            content = call_with_retry(fetch, seconds=self._seconds)
        except Refused as error:
            raise DataNotFound(f"expected {name} of {dataset_id}, saw: {error.detail}") from error
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise DataUnreadable(
                f"expected {name} of {dataset_id} as it was uploaded, saw other bytes at "
                f"{part.offset}"
            )
        return content
