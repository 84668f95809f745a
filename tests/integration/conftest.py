"""One system for all integration tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paced_models
import pytest
from drilled_job import spec_of
from stack import Stack, undisturbed_curves

from roadless.service.client.client import Client
from roadless.worker.runner.ray_cluster import Head, start_head


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(paced_models.__file__).parent))  # for ranks
        head = start_head(tmp_path_factory.mktemp("ray"), num_cpus=3)
    yield head
    head.stop()


@pytest.fixture(scope="session")
def stack(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("stack") / "home", ray_head)
    yield running
    running.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with stack.client() as made:
        yield made


@pytest.fixture(scope="session")
def reference(stack: Stack) -> Callable[[int], tuple[Any, ...]]:
    """Curves of runs of the drilled job that nobody disturbs, by number of ranks."""
    return undisturbed_curves(stack, spec_of)
