"""``python -m roadless.worker.runner``: the runner as a process."""

import logging
import os
import signal
import sys
from typing import NoReturn

import ray
from ray.exceptions import RayError

from roadless.worker.api import NameTaken, Refused, Replaced, RunnerApi
from roadless.worker.processes import configure_logging
from roadless.worker.runner.gang import Gangs
from roadless.worker.runner.node_agents import NAMESPACE, Agents
from roadless.worker.runner.ray_cluster import (
    NoCluster,
    UnauthenticatedRay,
    no_cluster,
    require_authentication,
    require_listening,
)
from roadless.worker.runner.runner import _AGENTS_SECONDS, Runner
from roadless.worker.settings import RunnerSettings, SettingsError


def _serve(settings: RunnerSettings) -> NoReturn:
    require_authentication(
        settings.ray_address, os.environ, is_waived=settings.allow_unauthenticated_ray
    )
    require_listening(settings.ray_address)
    api = RunnerApi(settings.service_url, token=settings.wait_for_token())
    _connect(settings.ray_address)
    # After ray.init, which installs its own handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gangs = Gangs(
        agents=Agents(scratch=settings.scratch, has_standby=settings.standby_agent),
        service_url=settings.service_url,
        data_sources=settings.data_sources,
        model_sources=settings.model_sources,
        method=settings.launcher,
    )
    gangs.wait_ready(_AGENTS_SECONDS)
    runner = Runner(
        api=api,
        cluster=gangs,
        service_url=settings.service_url,
        name=settings.runner_name,
        cluster_id=settings.cluster or ray.get_runtime_context().get_session_name(),
    )
    try:
        runner.run()
    finally:
        runner.close()
        api.close()
        ray.shutdown()


def _connect(address: str) -> None:
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise no_cluster(address, error) from error


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; exit with one sentence when this is not possible."""
    configure_logging()
    try:
        _serve(RunnerSettings.from_environment(os.environ))
    except (SettingsError, NoCluster, UnauthenticatedRay, NameTaken, Replaced) as error:
        sys.exit(str(error))
    except Refused as error:
        sys.exit(f"expected a runner token that the service knows, saw it refuse ours: {error}")
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
