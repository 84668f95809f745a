"""Models beyond the presets in real, forked ranks: trained by two, downloaded, started from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_attempt_server import AttemptServer
from model_cases import job_of
from rank_runs import Ranks
from training_bench import make_brief
from transformers import AutoModelForCausalLM

from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import EvalPoint, Failed, StepMetrics
from roadless.service.contract.states import Reason
from roadless.worker.validation.reload import MANIFEST_FILE
from roadless.worker.verify import verify

TWO = {"num_workers": 2}


def last(server: AttemptServer, kind: CheckpointKind) -> Manifest:
    saved = [event.manifest for event in server.service.said if event.kind == "checkpoint"]
    return [manifest for manifest in saved if manifest.kind is kind][-1]


def download(server: AttemptServer, manifest: Manifest, folder: Path) -> Path:
    """As ``roadless pull`` leaves it."""
    folder.mkdir()
    for file in manifest.files:
        content = server.service.files[manifest.checkpoint_id, file.name]
        (folder / file.name).write_bytes(content)
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return folder


def points(server: AttemptServer, kind: type[Any]) -> list[Any]:
    return [event for event in server.service.said if isinstance(event, kind)]


def starting(manifest: Manifest, **changes: Any) -> AttemptBrief:
    model = {
        "kind": "checkpoint",
        "checkpoint_id": manifest.checkpoint_id,
        "architecture": manifest.spec["model"],
    }
    job = {**job_of("transformers gpt2"), "model": model, "parallelism": TWO}
    brief = make_brief(**job, budget={"max_steps": 2})
    return brief.model_copy(update={"initial": manifest, **changes})


def test_a_language_model_of_transformers_is_trained_by_two_ranks_and_started_from(
    ranks: Ranks, tmp_path: Path, serve: Callable[[AttemptBrief], AttemptServer]
) -> None:
    """The receipt holds, the library loads the folder, and the next job goes on below its loss.

    That job is then resumed: from its own state, with the architecture of the first checkpoint.
    """
    job = {**job_of("transformers gpt2"), "parallelism": TWO}
    first = serve(make_brief(**job, budget={"max_steps": 30}))
    assert ranks.run(tmp_path / "1", "rank", world_size=2, url=first.url) == [0, 0]
    manifest = last(first, CheckpointKind.EVAL)
    folder = download(first, manifest, tmp_path / "download")
    threads = torch.get_num_threads()
    receipt, seen = verify(folder)
    torch.set_num_threads(threads)
    (point,) = points(first, EvalPoint)
    assert seen.loss == receipt.loss == point.loss
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "gpt2"

    second = serve(starting(manifest))
    second.service.files = first.service.files
    assert ranks.run(tmp_path / "2", "rank", world_size=2, url=second.url) == [0, 0]
    losses = [point.values["train.loss"] for point in points(first, StepMetrics)]
    assert points(second, StepMetrics)[0].values["train.loss"] < min(losses[:5])
    assert not list((tmp_path / "2").glob("initial-*"))

    state = last(second, CheckpointKind.RESUME)
    third = serve(starting(manifest, resume=state))
    third.service.files = second.service.files
    del third.service.files[manifest.checkpoint_id, "model.safetensors"]
    third.brief = make_longer(third.brief)
    assert ranks.run(tmp_path / "3", "rank", world_size=2, url=third.url) == [0, 0]
    assert [point.step for point in points(third, StepMetrics)] == [3]


@pytest.mark.parametrize("name", ["transformers gpt2", "transformers resnet", "vit"])
def test_a_model_sharded_over_two_ranks_is_written_whole_and_its_receipt_holds(
    ranks: Ranks,
    tmp_path: Path,
    serve: Callable[[AttemptBrief], AttemptServer],
    name: str,
) -> None:
    """Tied weights, batch norm and a library's own format, gathered from shards."""
    parallelism = {"num_workers": 2, "strategy": "fsdp"}
    server = serve(make_brief(**job_of(name), parallelism=parallelism, budget={"max_steps": 2}))
    assert ranks.run(tmp_path / "ranks", "rank", world_size=2, url=server.url) == [0, 0]
    folder = download(server, last(server, CheckpointKind.EVAL), tmp_path / "download")
    threads = torch.get_num_threads()
    receipt, seen = verify(folder)
    torch.set_num_threads(threads)
    assert seen.loss == pytest.approx(receipt.loss, rel=1e-6)


def make_longer(brief: AttemptBrief) -> AttemptBrief:
    assert brief.spec.budget is not None
    budget = brief.spec.budget.model_copy(update={"max_steps": 3})
    return brief.model_copy(update={"spec": brief.spec.model_copy(update={"budget": budget})})


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            {"kind": "entry_point", "factory": "entry_point_models:small"},
            Reason.MODEL_FORBIDDEN,
        ),
        (
            {
                "kind": "transformers",
                "auto_class": "AutoModelForImageClassification",
                "pretrained": "/etc",
            },
            Reason.MODEL_FORBIDDEN,
        ),
        ({"kind": "preset", "name": "vit", "patch": 3}, Reason.MODEL_INVALID),
    ],
)
def test_a_model_that_cannot_be_made_fails_the_job_with_its_reason(
    ranks: Ranks,
    tmp_path: Path,
    serve: Callable[[AttemptBrief], AttemptServer],
    model: dict[str, Any],
    reason: Reason,
) -> None:
    server = serve(make_brief(model=model))
    assert ranks.run(tmp_path, "rank", url=server.url) == [0]
    (failed,) = server.service.said
    assert isinstance(failed, Failed)
    assert failed.reason is reason
    assert "expected" in failed.message
