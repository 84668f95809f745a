"""The first step of a rank whose model comes from an uploaded wheel: get the wheel's environment.

Then it executes the environment's interpreter, and stays the same process to whoever watches it.
"""

import hashlib
import logging
import os
import sys
from functools import partial
from pathlib import Path

from roadless.service.contract.reports.cluster import AttemptEnded
from roadless.worker.agent.launcher import PRELOAD, RANK_ENTRY
from roadless.worker.agent.rank_process import hand_over, spawn_command
from roadless.worker.api import AttemptApi, Fenced, Refused
from roadless.worker.errors import MESSAGE_LENGTH, JobFailed, ModelNotFound, ModelUnreadable
from roadless.worker.processes import configure_logging
from roadless.worker.rank_launch import RankLaunch, WheelFile
from roadless.worker.retry import call_with_retry
from roadless.worker.wheels.environment import hold_environment

_log = logging.getLogger(__name__)

#: How long a starting rank waits for a service that is away.
_FETCH_SECONDS = 60.0
_TELL_SECONDS = 600.0


def main(launch: RankLaunch) -> None:
    """Run the launch's rank in the environment of its wheel.

    Exits with 0 when the job fails and the service knows why.
    """
    configure_logging()
    wheel = launch.wheel
    assert wheel is not None, "expected the launch of a job with a wheel"
    with AttemptApi(launch.service_url, attempt_id=launch.attempt_id, token=launch.token) as api:
        try:
            fetch = partial(_fetch, api, wheel)
            environment = hold_environment(launch.environments, wheel, fetch=fetch)
        except Fenced:
            _log.info("this attempt is over; leaving silently")
            return
        except JobFailed as failure:
            _log.error("the job fails: %s", failure)
            _tell(api, failure)
            return
    _become(launch, str(environment.interpreter))


def _become(launch: RankLaunch, interpreter: str) -> None:
    command = spawn_command(interpreter, entry=RANK_ENTRY, preload=PRELOAD, parent_pid=os.getppid())
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(hand_over(launch), 0)
    os.execv(interpreter, command)


def _fetch(api: AttemptApi, wheel: WheelFile, folder: Path) -> Path:
    path = folder / wheel.file_name
    try:
        call_with_retry(lambda: api.download_wheel(path), seconds=_FETCH_SECONDS)
    except Refused as error:
        raise ModelNotFound(f"expected the wheel {wheel.file_name}, saw: {error.detail}") from error
    with path.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != wheel.sha256:
        raise ModelUnreadable(f"expected {wheel.file_name} with SHA-256 {wheel.sha256}, saw {seen}")
    return path


def _tell(api: AttemptApi, failure: JobFailed) -> None:
    ended = AttemptEnded(reason=failure.reason, message=str(failure)[:MESSAGE_LENGTH])
    try:
        call_with_retry(lambda: api.ended(ended), seconds=_TELL_SECONDS)
    except Fenced:
        _log.info("another rank has said so before")
