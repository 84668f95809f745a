"""What a rank's node and the service give it to build from: data, and what models come from."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.uploads.datasets import DatasetContent, DatasetFile, DatasetPart
from roadless.worker.api import AttemptApi, Refused
from roadless.worker.data.build import build_data
from roadless.worker.data.progress import Tell
from roadless.worker.data.sources.access import DataSources
from roadless.worker.errors import DataNotFound, DataUnreadable
from roadless.worker.evaluation.sets import HeldOutSets, build_held_out
from roadless.worker.model.sources import ModelSources, wheel_of_this_process
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.retry import insist


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


#: How long a starting rank waits for a service that is away.
START_SECONDS = 60.0


def held_out_of(
    launch: RankLaunch, brief: AttemptBrief, api: AttemptApi, *, say: Callable[[str], None]
) -> HeldOutSets:
    """Build the data set, and all else that is evaluated.

    ``say`` hears now and then how far a long preparation is.
    """
    build = partial(
        build_data,
        model=brief.spec.model,
        task=brief.spec.task,
        sources=DataSources(
            roots=launch.data_roots,
            urls=launch.data_urls,
            allow_hub=launch.allow_hub,
            cache=launch.data_cache,
            cache_bytes=launch.data_cache_bytes,
            project=brief.spec.project,
            secrets=brief.spec.secrets,
        ),
        uploads=ServiceUploads(api, seconds=START_SECONDS),
        say=say,
    )
    return build_held_out(brief.spec, build=build, sources=model_sources(launch))


def model_sources(launch: RankLaunch) -> ModelSources:
    """Return what this node's operator allows models to be made of."""
    return ModelSources(
        roots=launch.model_roots,
        allow_hub=launch.allow_hub,
        entry_points=launch.entry_points,
        wheel_sha256=wheel_of_this_process(),
    )
