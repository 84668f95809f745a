"""Fixtures of the worker's tests: a stand-in rank, a service that only listens, a private Ray."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from fake_attempt_server import AttemptServer, serving
from rank_runs import Ranks
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.util import get_node_ip_address
from worker_drills import Call, Listener

from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.worker.runner.node_agents import NAMESPACE
from roadless.worker.runner.ray_cluster import Head, start_head


@pytest.fixture(scope="session")
def stand_in_path() -> Iterator[None]:
    """Make the stand-in importable in processes that are started from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture
def listener() -> Iterator[Listener]:
    heard = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            token = self.headers["Authorization"].removeprefix("Bearer ")
            call = Call(time.monotonic(), "POST", self.path, token, json.loads(body))
            status = heard.answers.pop(0) if heard.answers else 204
            heard.calls.append(call)
            self.send_response(status)
            if status >= 400:
                self.send_header("Content-Type", "application/problem+json")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    heard.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield heard
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, stand_in_path: None) -> Iterator[Ranks]:
    """Ranks of the real entry, with drills around it."""
    running = Ranks(tmp_path_factory.mktemp("ranks"), entry="rank_drills:main")
    yield running
    running.close()


@pytest.fixture
def serve() -> Iterator[Callable[[AttemptBrief], AttemptServer]]:
    """Starts services for ranks, each with the brief that it hands out; they end with the test."""
    with ExitStack() as running:
        yield lambda brief: running.enter_context(serving(brief))


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory, stand_in_path: None) -> Iterator[Head]:
    """One small private cluster with two pretended GPUs; this process is connected to it."""
    own = get_node_ip_address()  # further nodes of this machine join it
    head = start_head(tmp_path_factory.mktemp("ray"), num_cpus=4, num_gpus=2, node_ip=own)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.environment.items():
            patch.setenv(name, value)
        # Ray reads the mode once, on import.
        reset_auth_token_state()
        try:
            ray.init(head.address, namespace=NAMESPACE, log_to_driver=False)
            yield head
        finally:
            ray.shutdown()
            head.stop()
