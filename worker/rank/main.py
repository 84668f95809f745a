"""A rank from start to exit: fetch, build, resume, train, report how it ended."""

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
from roadless.service.contract.reports.cluster import AttemptBrief, AttemptEnded
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
from roadless.worker.api import ApiError, AttemptApi, Fenced
from roadless.worker.checkpointing.state_saver import StateSaver
from roadless.worker.checkpointing.training_state import Resumed
from roadless.worker.distributed.process_group import Cluster, join
from roadless.worker.errors import MESSAGE_LENGTH, DataInvalid, JobFailed, NonFiniteLoss
from roadless.worker.evaluation.inputs import START_SECONDS, datasets_of, model_sources
from roadless.worker.evaluation.sets import Datasets, naming
from roadless.worker.model.faults import foreign_frames
from roadless.worker.processes import configure_logging
from roadless.worker.rank.restore import fetch_files, initial_model, resume
from roadless.worker.rank.trial import try_model
from roadless.worker.rank.watchdog import Watchdog
from roadless.worker.rank_launch import RankLaunch
from roadless.worker.reporting.reporter import Reporter
from roadless.worker.retry import call_with_retry
from roadless.worker.secrets import REDACTOR, install_secrets, redact_streams
from roadless.worker.setup import RankContext, TrainingSetup, set_up_training
from roadless.worker.training.evaluations import EvaluationManager
from roadless.worker.training.loop import Training
from roadless.worker.validation.checkpoint_validator import CheckpointValidator, tolerance_on
from roadless.worker.validation.evaluator import Evaluator
from roadless.worker.validation.evaluator_process import Setup
from roadless.worker.validation.evaluator_process import main as evaluate_files
from roadless.worker.validation.zygote import Zygote

log = logging.getLogger(__name__)

#: How long an ending rank keeps trying to deliver its last events.
DRAIN_SECONDS = 3600.0
#: How long a rank that hangs, or that nobody hears, tries to report it, before it dies and its
#: agent reports instead.
HANG_REPORT_SECONDS = 10.0


def main(launch: RankLaunch) -> None:
    """Run the rank; exits with 0 once its ending is delivered or no longer wanted.

    ``os._exit``: a plain exit would run gloo's destructors, which abort occasionally.
    """
    redact_streams()
    configure_logging()
    load_kernels()  # before the fork, or now: the kernels in use do not depend on that
    # Before there are threads, peers or a GPU in use: what it forks later has none of them.
    zygote = Zygote(partial(evaluate_files, launch=launch)) if launch.rank == 0 else None
    with AttemptApi(launch.service_url, attempt_id=launch.attempt_id, token=launch.token) as api:
        reporter = Reporter(
            api,
            rank=launch.rank,
            folder=Path(launch.scratch),
            redact=REDACTOR.redact_event,
            on_unheard=partial(_leave_unheard, launch, api),
        )
        try:
            ending = _ending_of(launch, api, reporter, zygote)
        except Fenced:
            log.info("this attempt is over; leaving silently")
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
    launch: RankLaunch, api: AttemptApi, reporter: Reporter, zygote: Zygote | None
) -> Event | None:
    """Train, and return the ending to report; None when there is nothing to say."""
    try:
        return _run(launch, api, reporter, zygote)
    except Fenced:
        raise
    except JobFailed as failure:
        log.error("the job failed: %s", failure, exc_info=failure.__cause__ is not None)
        if isinstance(failure, NonFiniteLoss) and launch.rank != 0:
            return None  # all ranks saw it; the lead has points to deliver before the ending
        return Failed(reason=failure.reason, message=_fit(str(failure)))
    except Exception as error:
        log.exception("the rank failed")
        said = _fit(f"rank {launch.rank}: {type(error).__name__}: {error}")
        # Redacted before it is cut: a secret that is cut in two is no longer recognised.
        trace = _fit(REDACTOR.redact(traceback.format_exc())[-MESSAGE_LENGTH:])
        return Failed(
            reason=Reason.WORKER_ERROR,
            message="\n".join([said, *map(_fit, foreign_frames(error)), trace]),
        )


def _give_up(launch: RankLaunch, reporter: Reporter, message: str) -> None:
    """Report that this rank hangs, and exit; called by a thread other than the one that hangs."""
    said = f"rank {launch.rank}: {message}"
    reporter.say(Failed(reason=Reason.RANK_HUNG, message=_fit(said)))
    delivered = reporter.close(timeout_seconds=HANG_REPORT_SECONDS)
    _leave(0 if delivered or reporter.heard.is_fenced else 1)


def _leave_unheard(launch: RankLaunch, api: AttemptApi, message: str) -> None:
    """Exit, since nobody hears what this rank computes; called by the thread that reports.

    The attempt's end has no number among the events, so it may pass where they do not.
    """
    ended = AttemptEnded(reason=Reason.UNHEARD, message=_fit(f"rank {launch.rank}: {message}"))
    try:
        call_with_retry(lambda: api.ended(ended), seconds=HANG_REPORT_SECONDS)
    except ApiError as error:
        log.error("the service does not take the end of the attempt either: %s", error)
    _leave(1)


def _fit(text: str) -> str:
    """The text in a form for events: bounded, and without what UTF-8 cannot encode."""
    return REDACTOR.redact(text)[:MESSAGE_LENGTH].encode(errors="replace").decode()


def _run(
    launch: RankLaunch, api: AttemptApi, reporter: Reporter, zygote: Zygote | None
) -> Event | None:
    brief = _fetch_brief(api)
    install_secrets(brief, data_cache=launch.data_sources.cache)
    reporter.set_desired_state(brief.desired)
    reporter.set_patience(brief.spec.retry.hang_seconds)
    datasets = _datasets(launch, brief, api, reporter)
    _require_same_data(brief, datasets)
    cluster = join(launch)
    setup = _build(launch, brief, api, datasets=datasets, cluster=cluster)
    resumed = resume(brief, api, setup, Path(launch.scratch) / f"resume-{launch.rank}")
    context = RankContext(brief=brief, cluster=cluster, reporter=reporter, setup=setup)
    notices = try_model(launch, context)
    if cluster.is_lead:
        reporter.say(_started(context, resumed))
        for notice in notices:
            reporter.say(notice)
    return _train(launch, context, resumed, zygote)


def _train(
    launch: RankLaunch, context: RankContext, resumed: Resumed, zygote: Zygote | None
) -> Event | None:
    """Train from where the attempt resumes; return the lead's ending, if there is one to say."""
    staging = Path(launch.scratch) / f"staging-{launch.rank}"
    watchdog = Watchdog(
        context.brief.spec.retry.hang_seconds, on_hang=partial(_give_up, launch, context.reporter)
    )
    evaluations = EvaluationManager(
        context,
        staging=staging,
        validator=_validator(zygote, context) if zygote is not None else None,
        beat=watchdog.beat,
    )
    states = StateSaver(context, staging=staging)
    training = Training(
        context,
        evaluations=evaluations,
        states=states,
        position=resumed.position,
        evaluated_step=resumed.evaluated_step,
        beat=watchdog.beat,
    )
    try:
        reason = training.run()
    finally:
        watchdog.close()
        states.close()
    if reason is None or not context.cluster.is_lead:
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


def _validator(zygote: Zygote, context: RankContext) -> CheckpointValidator:
    """Build what validates the lead's checkpoints before they are listed."""
    spec, device = context.brief.spec, context.cluster.device
    setup = Setup(context.brief, threads=torch.get_num_threads(), device=device)
    evaluator = Evaluator(zygote, setup, silence_seconds=spec.retry.hang_seconds)
    return CheckpointValidator(
        evaluator,
        events=context.reporter,
        batch_size=spec.evaluation.batch_size,
        tolerance=tolerance_on(device),
    )


def _datasets(
    launch: RankLaunch, brief: AttemptBrief, api: AttemptApi, reporter: Reporter
) -> Datasets:
    """Build the data sets; each message of a long preparation renews the deadline of STARTING."""
    return datasets_of(
        launch,
        brief,
        api,
        say=lambda text: reporter.say(Notice(code=DATA_PREPARING, message=_fit(text))),
    )


def _require_same_data(brief: AttemptBrief, datasets: Datasets) -> None:
    """Refuse changed data: training on other samples under the same name would go unnoticed.

    A further set that was there from the start belongs to the same curve, so it must not change.
    """
    _require_same(brief.data_fingerprint, datasets.description.fingerprint)
    for name, fingerprint in datasets.fingerprints.items():
        with naming(name):
            _require_same(brief.set_fingerprints.get(name), fingerprint)


def _require_same(expected: str | None, seen: str) -> None:
    if expected not in (None, seen):
        raise DataInvalid(
            f"expected the data that training began with, whose fingerprint is {expected}, "
            f"saw {seen}: it has changed since"
        )


def _fetch_brief(api: AttemptApi) -> AttemptBrief:
    return call_with_retry(api.brief, seconds=START_SECONDS)


def _build(
    launch: RankLaunch,
    brief: AttemptBrief,
    api: AttemptApi,
    *,
    datasets: Datasets,
    cluster: Cluster,
) -> TrainingSetup:
    data = datasets.description
    folder = Path(launch.scratch) / f"initial-{launch.rank}"

    def fetch(manifest: Manifest) -> Path:
        fetch_files(manifest, api, folder)
        return folder

    model = initial_model(brief, data=data, sources=model_sources(launch), fetch=fetch)
    shutil.rmtree(folder, ignore_errors=True)
    return set_up_training(model, spec=brief.spec, datasets=datasets, cluster=cluster)


def _started(context: RankContext, resumed: Resumed) -> Started:
    brief, cluster, datasets = context.brief, context.cluster, context.setup.datasets
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
            "data_fingerprint": datasets.description.fingerprint,
            **{
                f"{SET_FINGERPRINT}{name}": fingerprint
                for name, fingerprint in datasets.fingerprints.items()
            },
        },
    )
