"""Secrets in real, forked ranks: there for who looks, and in nothing that a rank says or writes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_cases import csv_text
from fake_attempt_server import AttemptServer, serving
from guarded_site import guarded_site
from pydantic import SecretStr
from training_bench import make_brief
from worker_drills import make_launch, wait_until

from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import Failed
from roadless.service.contract.states import Reason
from roadless.worker.agent.fork_launcher import ForkLauncher
from roadless.worker.agent.launcher import Exited
from roadless.worker.rank_launch import DataSources, ModelSources
from roadless.worker.validation.reload import MANIFEST_FILE

VALUE = "hf_+never/logged&in any=form"
FACTORY = "leaking_models:refused"
LONG = "leaking_models:refused_at_length"


@pytest.fixture(scope="module")
def exits() -> list[Exited]:
    return []


@pytest.fixture(scope="module")
def launcher(
    tmp_path_factory: pytest.TempPathFactory, stand_in_path: None, exits: list[Exited]
) -> Iterator[ForkLauncher]:
    running = ForkLauncher(
        scratch=tmp_path_factory.mktemp("ranks"), on_exit=exits.append, preload=("torch", "httpx")
    )
    yield running
    running.close()


@pytest.fixture
def run(
    launcher: ForkLauncher, exits: list[Exited], tmp_path: Path
) -> Iterator[Callable[..., AttemptServer]]:
    """Has one rank do what the brief says; returns the service that it has spoken to."""
    contexts = []

    def running(brief: AttemptBrief, *, urls: tuple[str, ...] = ()) -> AttemptServer:
        contexts.append(serving(brief))
        server: AttemptServer = contexts[-1].__enter__()
        exits.clear()
        launch = make_launch(
            tmp_path / "scratch",
            service_url=server.url,
            model_sources=ModelSources(entry_points=(FACTORY, LONG)),
            data_sources=DataSources(cache=str(tmp_path / "cache"), urls=urls),
        )
        launcher.launch([launch])
        wait_until(lambda: exits, seconds=60)
        return server

    yield running
    for context in contexts:
        context.__exit__(None, None, None)


def failure(server: AttemptServer) -> Failed:
    failed = server.service.said[-1]
    assert isinstance(failed, Failed), failed
    return failed


def test_a_library_that_tells_the_token_is_not_heard(
    run: Callable[..., AttemptServer], tmp_path: Path
) -> None:
    brief = make_brief(model={"kind": "entry_point", "factory": FACTORY}, secrets=["HF_TOKEN"])
    server = run(brief.model_copy(update={"secrets": {"HF_TOKEN": SecretStr(VALUE)}}))
    failed = failure(server)
    assert failed.reason is Reason.MODEL_INVALID
    assert "401 for https://user:***@host/ with Basic " in failed.message
    log = (tmp_path / "scratch" / "rank-0.log").read_text()
    assert "asking with {'Authorization': 'Bearer ***'}" in log
    assert "token is ***\n" in log
    assert "401 for https://user:***@host/" in log
    for text in (log, failed.message, *map(str, server.service.said)):
        for part in ("never", "bmV2ZX"):
            assert part not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"never" in path.read_bytes()]


def test_a_message_that_is_cut_ends_with_no_part_of_a_secret(
    run: Callable[..., AttemptServer],
) -> None:
    """Nobody would find a half of it any more."""
    brief = make_brief(model={"kind": "entry_point", "factory": LONG}, secrets=["HF_TOKEN"])
    server = run(brief.model_copy(update={"secrets": {"HF_TOKEN": SecretStr(VALUE)}}))
    said, _, frame = failure(server).message.partition("\n")
    assert re.fullmatch(r"expected .*, saw Unauthorised: (\*\*\*)+", said)
    assert len(said) > 300
    assert frame.startswith("  at leaking_models.py:")
    assert "never" not in frame


def test_a_rank_without_a_secret_that_its_job_names_says_which_and_does_nothing_else(
    run: Callable[..., AttemptServer],
) -> None:
    faults = ["HF_TOKEN was deleted; put it again"]
    server = run(make_brief(secrets=["HF_TOKEN"]).model_copy(update={"secret_faults": faults}))
    assert failure(server).reason is Reason.SECRET_UNAVAILABLE
    assert "HF_TOKEN was deleted" in failure(server).message
    assert [event.kind for event in server.service.said] == ["failed"]


ROWS = csv_text({"x": [float(i % 7) for i in range(200)], "y": [i % 2 for i in range(200)]})


def test_a_bearer_opens_the_data_to_the_rank_and_to_whoever_verifies_with_it(
    run: Callable[..., AttemptServer], tmp_path: Path
) -> None:
    """Each by its own environment; without the name of the variable nothing is sent to the site."""
    with guarded_site(ROWS.encode(), token=VALUE) as site:
        data = {"kind": "files", "format": "csv", "path": f"{site.url}/a.csv", "target": "y"}
        brief = make_brief(
            data={**data, "bearer": "SITE_TOKEN"},
            secrets=["SITE_TOKEN"],
            budget={"max_steps": 2},
        )
        told = {"secrets": {"SITE_TOKEN": SecretStr(VALUE)}}
        server = run(brief.model_copy(update=told), urls=(site.url,))
        assert server.service.said[-1].kind == "finished", server.service.said[-1]
        folder = download(server, tmp_path / "model")
        environment = {
            "SITE_TOKEN": VALUE,
            "ROADLESS_DATA_URLS": site.url,
            "ROADLESS_DATA_CACHE": str(tmp_path / "cache-of-verify"),
        }
        asked = len(site.heard)
        refused = verified(folder, environment)
        assert refused.returncode != 0
        assert "expected the bearer SITE_TOKEN among" in refused.stderr
        assert len(site.heard) == asked
        equal = verified(folder, environment, "--secret", "SITE_TOKEN")
        assert equal.returncode == 0, equal.stderr
        absent = verified(folder, environment, "--secret", "OTHER_TOKEN")
        assert "expected OTHER_TOKEN in the environment" in absent.stderr


def download(server: AttemptServer, folder: Path) -> Path:
    """The newest model as ``roadless pull`` leaves it."""
    saved = [event.manifest for event in server.service.said if event.kind == "checkpoint"]
    manifest: Manifest = [one for one in saved if one.kind is CheckpointKind.EVAL][-1]
    folder.mkdir()
    for file in manifest.files:
        content = server.service.files[manifest.checkpoint_id, file.name]
        (folder / file.name).write_bytes(content)
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder


def verified(
    folder: Path, environment: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roadless.worker.verify", str(folder), *options],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
