"""What a forked rank does: fetch, build, resume, train, say how it ended, leave."""

import logging
import os
import platform
import shutil
import sys
import traceback
from functools import partial
from pathlib import Path

import torch

from roadless.optim import load_kernels
from roadless.service.contract.checkpoint.manifest import Manifest
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import (
    DATA_PREPARING,
    SET_FINGERPRINT,
    Event,
    Failed,
    Finished,
    Notice,
    Started,
)
from roadless.service.contract.states import Reason
from roadless.worker.api import AttemptApi, Fenced
from roadless.worker.checkpointing.training_state import Resumed
from roadless.worker.distributed.process_group import Cluster, join
from roadless.worker.errors import DataInvalid, JobFailed, NonFiniteLoss
from roadless.worker.evaluation.inputs import START_SECONDS, held_out_of, model_sources
from roadless.worker.evaluation.sets import HeldOutSets, naming
from roadless.worker.rank.restore import _fetch_files, _resume, initial_model
from roadless.worker.rank.watchdog import Watchdog
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.reporting.reporter import Reporter
from roadless.worker.retry import insist
from roadless.worker.secrets import REDACTOR, redact_streams, take
from roadless.worker.setup import Built, assemble
from roadless.worker.training.evaluations import Milestones
from roadless.worker.training.loop import Training
from roadless.worker.validation.checkpoint_validator import Examiner, tolerance_on
from roadless.worker.validation.evaluator import Evaluator
from roadless.worker.validation.evaluator_process import Beginning
from roadless.worker.validation.evaluator_process import main as evaluate_files
from roadless.worker.validation.zygote import Nursery

log = logging.getLogger(__name__)

#: How long an ending rank keeps trying to deliver its last words.
DRAIN_SECONDS = 3600.0
#: How long a rank that hangs tries to say so, before it dies and its agent speaks for it.
HANG_REPORT_SECONDS = 10.0
_MESSAGE_LENGTH = 4000


def main(launch: RankLaunch) -> None:
    """Run the rank; leaves the process with 0 once its ending is delivered or no longer wanted.

    ``os._exit``: a plain exit would run gloo's destructors, which abort now and then.
    """
    redact_streams()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    load_kernels()  # done before the fork, or now: what steps a model never depends on that
    # Before there are threads, peers or a GPU in use: what it forks later knows none of them.
    nursery = Nursery(partial(evaluate_files, launch=launch)) if launch.rank == 0 else None
    with AttemptApi(launch.service_url, attempt_id=launch.attempt_id, token=launch.token) as api:
        reporter = Reporter(
            api,
            rank=launch.rank,
            folder=Path(launch.scratch),
            redact=REDACTOR.redact_event,
        )
        try:
            ending = _ending_of(launch, api, reporter, nursery)
        except Fenced:
            log.info("this attempt is over; leaving without a word")
            _leave(0)
        if ending is not None:
            reporter.end(ending)
        delivered = reporter.close(timeout_seconds=DRAIN_SECONDS)
    _leave(0 if delivered or reporter.heard.is_fenced else 1)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ending_of(
    launch: RankLaunch, api: AttemptApi, reporter: Reporter, nursery: Nursery | None
) -> Event | None:
    """Train, and put the ending into words; None when there is nothing to say."""
    try:
        return _run(launch, api, reporter, nursery)
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
        # Redacted before it is cut, which could leave a part of a secret that is found no more.
        trace = _fit(REDACTOR.redact(traceback.format_exc())[-_MESSAGE_LENGTH:])
        return Failed(reason=Reason.WORKER_ERROR, message=f"{said}\n{trace}")


def _give_up(launch: RankLaunch, reporter: Reporter, message: str) -> None:
    """Say that this rank hangs, and die; called by another thread than the one that hangs."""
    said = f"rank {launch.rank}: {message}"
    reporter.say(Failed(reason=Reason.RANK_HUNG, message=_fit(said)))
    delivered = reporter.close(timeout_seconds=HANG_REPORT_SECONDS)
    _leave(0 if delivered or reporter.heard.is_fenced else 1)


def _fit(text: str) -> str:
    """The text as an event takes it: bounded, and without what UTF-8 cannot say."""
    return REDACTOR.redact(text)[:_MESSAGE_LENGTH].encode(errors="replace").decode()


def _run(
    launch: RankLaunch, api: AttemptApi, reporter: Reporter, nursery: Nursery | None
) -> Event | None:
    brief = _fetch_brief(api)
    take(brief, data_cache=launch.data_cache)
    reporter.wish(brief.desired)
    held_out = _held_out(launch, brief, api, reporter)
    _require_same_data(brief, held_out)
    cluster = join(launch)
    built = _build(launch, brief, api, held_out=held_out, cluster=cluster)
    resumed = _resume(brief, api, built, Path(launch.scratch) / f"resume-{launch.rank}")
    watchdog = Watchdog(
        brief.spec.retry.hang_seconds, on_hang=lambda message: _give_up(launch, reporter, message)
    )
    milestones = Milestones(
        built,
        brief=brief,
        cluster=cluster,
        reporter=reporter,
        staging=Path(launch.scratch) / f"staging-{launch.rank}",
        examiner=_examiner(nursery, brief, cluster, reporter) if nursery is not None else None,
        beat=watchdog.beat,
    )
    training = Training(
        built,
        milestones,
        brief=brief,
        cluster=cluster,
        reporter=reporter,
        position=resumed.position,
        evaluated_step=resumed.evaluated_step,
        beat=watchdog.beat,
    )
    if cluster.is_lead:
        reporter.say(_started(brief, cluster, held_out, resumed))
    try:
        reason = training.run()
    finally:
        watchdog.close()
        milestones.close()
    if reason is None or not cluster.is_lead:
        return None
    assert reason in (
        Reason.BUDGET_REACHED,
        Reason.GOAL_REACHED,
        Reason.NO_BETTER,
        Reason.STOPPED_BY_USER,
        Reason.PAUSED_BY_USER,
        Reason.RESIZED,
    )
    return Finished(reason=reason, step=training.step, budget=training.budget)


def _examiner(
    nursery: Nursery, brief: AttemptBrief, cluster: Cluster, reporter: Reporter
) -> Examiner:
    """Who looks at the lead's checkpoints before they are listed."""
    beginning = Beginning(brief, threads=torch.get_num_threads(), device=cluster.device)
    evaluator = Evaluator(nursery, beginning, silence_seconds=brief.spec.retry.hang_seconds)
    return Examiner(
        evaluator,
        voice=reporter,
        batch_size=brief.spec.evaluation.batch_size,
        tolerance=tolerance_on(cluster.device),
    )


def _held_out(
    launch: RankLaunch, brief: AttemptBrief, api: AttemptApi, reporter: Reporter
) -> HeldOutSets:
    """Build the data sets; each word of a long preparation renews the deadline of STARTING."""
    return held_out_of(
        launch,
        brief,
        api,
        say=lambda text: reporter.say(Notice(code=DATA_PREPARING, message=_fit(text))),
    )


def _require_same_data(brief: AttemptBrief, held_out: HeldOutSets) -> None:
    """Other data under the same name would go on with other samples, and nobody would know.

    A further set that was there from the start is the same curve's, so that it holds for it too.
    """
    _require_same(brief.data_fingerprint, held_out.main.description.fingerprint)
    for name, fingerprint in held_out.fingerprints.items():
        with naming(name):
            _require_same(brief.set_fingerprints.get(name), fingerprint)


def _require_same(expected: str | None, seen: str) -> None:
    if expected not in (None, seen):
        raise DataInvalid(
            f"expected the data that training began with, whose fingerprint is {expected}, "
            f"saw {seen}: it has changed since"
        )


def _fetch_brief(api: AttemptApi) -> AttemptBrief:
    found: list[AttemptBrief] = []
    insist(lambda: found.append(api.brief()), seconds=START_SECONDS)
    return found[0]


def _build(
    launch: RankLaunch,
    brief: AttemptBrief,
    api: AttemptApi,
    *,
    held_out: HeldOutSets,
    cluster: Cluster,
) -> Built:
    data = held_out.main.description
    folder = Path(launch.scratch) / f"initial-{launch.rank}"

    def fetch(manifest: Manifest) -> Path:
        _fetch_files(manifest, api, folder)
        return folder

    model = initial_model(brief, data=data, sources=model_sources(launch), fetch=fetch)
    shutil.rmtree(folder, ignore_errors=True)
    return assemble(model, spec=brief.spec, held_out=held_out, cluster=cluster)


def _started(
    brief: AttemptBrief, cluster: Cluster, held_out: HeldOutSets, resumed: Resumed
) -> Started:
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
            "precision": brief.spec.training.precision,
            "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
            "data_fingerprint": held_out.main.description.fingerprint,
            **{
                f"{SET_FINGERPRINT}{name}": fingerprint
                for name, fingerprint in held_out.fingerprints.items()
            },
        },
    )
