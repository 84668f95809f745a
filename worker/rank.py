"""What a forked rank does: fetch, build, resume, train, say how it ended, leave."""

import logging
import os
import platform
import shutil
import sys
import traceback
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from service.contract.cluster import AttemptBrief
from service.contract.events import Event, Failed, Finished, Started
from service.contract.manifest import Manifest
from service.contract.states import Reason
from worker.api import AttemptApi, Fenced, insist
from worker.build import build_optimizer
from worker.built import Built
from worker.checkpoint import Resumed, check_files, read_state
from worker.cluster import Cluster, join
from worker.data.base import DataSet
from worker.data.build import build_data
from worker.errors import JobFailed, NonFiniteLoss
from worker.launcher import RankLaunch
from worker.loop import Training
from worker.milestones import Milestones
from worker.model.build import build_model
from worker.position import Position
from worker.report import Reporter

log = logging.getLogger(__name__)

#: How long a starting rank waits for a service that is away.
START_SECONDS = 60.0
#: How long an ending rank keeps trying to deliver its last words.
DRAIN_SECONDS = 3600.0
_MESSAGE_LENGTH = 4000


def main(launch: RankLaunch) -> None:
    """Run the rank; leaves the process with 0 once its ending is delivered or no longer wanted.

    ``os._exit``: a plain exit would run gloo's destructors, which abort now and then.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with AttemptApi(launch.service_url, attempt_id=launch.attempt_id, token=launch.token) as api:
        reporter = Reporter(api, rank=launch.rank, folder=Path(launch.scratch))
        try:
            ending = _ending_of(launch, api, reporter)
        except Fenced:
            log.info("this attempt is over; leaving without a word")
            _leave(0)
        if ending is not None:
            reporter.say(ending)
        delivered = reporter.close(timeout_seconds=DRAIN_SECONDS)
    _leave(0 if delivered or reporter.heard.is_fenced else 1)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ending_of(launch: RankLaunch, api: AttemptApi, reporter: Reporter) -> Event | None:
    """Train, and put the ending into words; None when there is nothing to say."""
    try:
        return _run(launch, api, reporter)
    except Fenced:
        raise
    except JobFailed as failure:
        log.error("the job fails: %s", failure)
        if isinstance(failure, NonFiniteLoss) and launch.rank != 0:
            return None  # all ranks saw it; the lead has points to deliver before the ending
        return Failed(reason=failure.reason, message=_fit(str(failure)))
    except Exception as error:
        log.exception("the rank fails")
        said = _fit(f"rank {launch.rank}: {type(error).__name__}: {error}")
        trace = _fit(traceback.format_exc()[-_MESSAGE_LENGTH:])
        return Failed(reason=Reason.WORKER_ERROR, message=f"{said}\n{trace}")


def _fit(text: str) -> str:
    """The text as an event takes it: bounded, and without what UTF-8 cannot say."""
    return text[:_MESSAGE_LENGTH].encode(errors="replace").decode()


def _run(launch: RankLaunch, api: AttemptApi, reporter: Reporter) -> Event | None:
    brief = _fetch_brief(api)
    reporter.wish(brief.desired)
    data = build_data(brief.spec.data, model=brief.spec.model, roots=launch.data_roots)
    cluster = join(launch)
    built = _build(brief, data, cluster)
    resumed = _resume(brief, api, built, Path(launch.scratch) / f"resume-{launch.rank}")
    milestones = Milestones(
        built,
        brief=brief,
        cluster=cluster,
        reporter=reporter,
        staging=Path(launch.scratch) / f"staging-{launch.rank}",
    )
    training = Training(
        built,
        milestones,
        brief=brief,
        cluster=cluster,
        reporter=reporter,
        position=resumed.position,
        evaluated_step=resumed.evaluated_step,
    )
    if cluster.is_lead:
        reporter.say(_started(brief, cluster, data, resumed))
    reason = training.run()
    if reason is None or not cluster.is_lead:
        return None
    assert reason in (Reason.BUDGET_REACHED, Reason.STOPPED_BY_USER)
    return Finished(reason=reason, step=training.step)


def _fetch_brief(api: AttemptApi) -> AttemptBrief:
    found: list[AttemptBrief] = []
    insist(lambda: found.append(api.brief()), seconds=START_SECONDS)
    return found[0]


def _build(brief: AttemptBrief, data: DataSet, cluster: Cluster) -> Built:
    spec = brief.spec
    model = build_model(spec.model, data=data.description, seed=spec.training.seed)
    model.to(cluster.device)
    optimizer = build_optimizer(spec.optimizer, params=model.parameters())
    wrapped = _wrap(model) if cluster.world_size > 1 else model
    return Built(model=model, wrapped=wrapped, optimizer=optimizer, data=data)


def _wrap(model: torch.nn.Module) -> torch.nn.Module:
    # Without find_unused_parameters DDP rebuilds its buckets after the first iteration, which
    # changes the order of sums: a resumed run of three ranks would differ in the last bit.
    return DistributedDataParallel(model, find_unused_parameters=True)


def _resume(brief: AttemptBrief, api: AttemptApi, built: Built, folder: Path) -> Resumed:
    if brief.resume is None:
        return Resumed(Position(), None)
    _fetch_files(brief.resume, api, folder)
    resumed = read_state(folder, model=built.model, optimizer=built.optimizer)
    shutil.rmtree(folder)
    return resumed


def _fetch_files(manifest: Manifest, api: AttemptApi, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in manifest.files:

        def fetch(name: str = file.name) -> None:
            api.download(folder / name, checkpoint_id=manifest.checkpoint_id, name=name)

        insist(fetch, seconds=START_SECONDS)
    check_files(folder, manifest)


def _started(brief: AttemptBrief, cluster: Cluster, data: DataSet, resumed: Resumed) -> Started:
    return Started(
        resumed_step=resumed.position.step,
        world_size=cluster.world_size,
        provenance={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name() if cluster.device.type == "cuda" else "cpu",
            "threads": str(torch.get_num_threads()),
            "seed": str(brief.spec.training.seed),
            "data_fingerprint": data.description.fingerprint,
        },
    )
