"""``python -m roadless.worker.runner``: the runner as a process."""

import logging
import os
import signal
import sys
from typing import NoReturn

import ray

from roadless.worker.api import NameTaken, Replaced, RunnerApi
from roadless.worker.processes import configure_logging
from roadless.worker.runner.gang import Gangs
from roadless.worker.runner.node_agents import NAMESPACE, Agents
from roadless.worker.runner.ray_cluster import UnauthenticatedRay, require_authentication
from roadless.worker.runner.runner import _AGENTS_SECONDS, Runner
from roadless.worker.settings import RunnerSettings, SettingsError


def _serve(settings: RunnerSettings) -> NoReturn:
    require_authentication(
        settings.ray_address, os.environ, is_waived=settings.allow_unauthenticated_ray
    )
    api = RunnerApi(settings.service_url, token=settings.wait_for_token())
    ray.init(
        settings.ray_address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    # After ray.init, which installs its own handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gangs = Gangs(
        agents=Agents(scratch=settings.scratch),
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


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; exit with one sentence when this is not possible."""
    configure_logging()
    try:
        _serve(RunnerSettings.from_environment(os.environ))
    except (SettingsError, UnauthenticatedRay, NameTaken, Replaced) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
