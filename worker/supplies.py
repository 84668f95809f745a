"""What a rank's node and the service give it to build from: data, and what models come from."""

from collections.abc import Callable
from functools import partial

from service.contract.cluster import AttemptBrief
from worker.api import AttemptApi
from worker.data.build import build_data
from worker.data.sources import DataSources
from worker.evaluation_sets import HeldOutSets, build_held_out
from worker.launcher import RankLaunch
from worker.model.sources import ModelSources, wheel_of_this_process
from worker.uploads import ServiceUploads

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
