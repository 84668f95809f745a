"""Starting from a checkpoint: its weights, a fresh optimizer, and nothing fetched twice."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_cases import DIGITS, job_of
from training_bench import Bench, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.ids import new_id
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.states import Reason
from roadless.worker.data.base import Description
from roadless.worker.errors import JobFailed
from roadless.worker.rank.restore import initial_model
from roadless.worker.rank_launch import ModelSources
from roadless.worker.reporting.staged_checkpoint import Staged
from roadless.worker.validation.reload import MANIFEST_FILE
from roadless.worker.verify import verify

NOTHING = ModelSources()


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[str], Staged]:
    def train(name: str) -> Staged:
        bench = Bench(make_brief(**job_of(name), budget={"max_steps": 2}), tmp_path / name)
        bench.training.run()
        return bench.reporter.of_kind(CheckpointKind.EVAL)[-1]

    return train


def brief_from(staged: Staged, name: str, **changes: Any) -> AttemptBrief:
    model = {
        "kind": "checkpoint",
        "checkpoint_id": new_id("ckpt"),
        "architecture": staged.manifest.spec["model"],
    }
    brief = make_brief(**{**job_of(name), "model": model})
    return brief.model_copy(update={"initial": staged.manifest, **changes})


def fetch_from(staged: Staged, fetched: list[Manifest]) -> Callable[[Manifest], Path]:
    def fetch(manifest: Manifest) -> Path:
        fetched.append(manifest)
        return staged.folder

    return fetch


@pytest.mark.parametrize("name", ["convnet", "gpt", "transformers gpt2"])
def test_training_begins_at_the_weights_of_the_checkpoint(
    trained: Callable[[str], Staged], tmp_path: Path, name: str
) -> None:
    """The first evaluation of the new job, before any step, has the loss of the receipt."""
    staged = trained(name)
    brief, fetched = brief_from(staged, name), list[Manifest]()
    bench_data = Bench(make_brief(**job_of(name)), tmp_path / "data").setup.datasets
    model = initial_model(
        brief,
        data=bench_data.description,
        sources=NOTHING,
        fetch=fetch_from(staged, fetched),
    )
    bench = Bench(brief, tmp_path / "next", model=model)
    bench.evaluations.evaluate(bench.training.position, evaluations_served=0)
    (point,) = bench.reporter.evals
    assert staged.manifest.evaluation is not None
    assert point.loss == staged.manifest.evaluation.loss
    assert bench.setup.optimizer.state_dict()["state"] == {}
    assert fetched == [staged.manifest]


def test_the_checkpoint_of_such_a_job_is_verified_like_any_other(
    trained: Callable[[str], Staged], tmp_path: Path
) -> None:
    """Its manifest carries the architecture itself, so the first checkpoint may be gone."""
    first = trained("mlp")
    brief = brief_from(first, "mlp")
    model = initial_model(brief, data=DIGITS, sources=NOTHING, fetch=fetch_from(first, []))
    bench = Bench(brief, tmp_path / "second", model=model)
    bench.training.run()
    second = bench.reporter.of_kind(CheckpointKind.EVAL)[-1]
    (second.folder / MANIFEST_FILE).write_text(second.manifest.model_dump_json())
    shutil.rmtree(first.folder)
    receipt, seen = verify(second.folder)
    assert seen.loss == receipt.loss


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mlp", set()), ("transformers gpt2", {"config.json", "generation_config.json"})],
)
def test_an_attempt_that_resumes_fetches_no_weights_from_there(
    trained: Callable[[str], Staged], name: str, expected: set[str]
) -> None:
    staged, fetched = trained(name), list[Manifest]()
    brief = brief_from(staged, name, resume=staged.manifest)
    data = Description((16,), 256, 16, "") if "gpt" in name else DIGITS
    fetch = fetch_from(staged, fetched)
    initial_model(brief, data=data, sources=NOTHING, fetch=fetch)
    assert {file.name for manifest in fetched for file in manifest.files} == expected


def test_data_of_other_shapes_is_the_users_to_mend(trained: Callable[[str], Staged]) -> None:
    """The files are whole: another attempt would fail in the same way."""
    staged = trained("mlp")
    other = Description((1, 8, 8), 7, tokens_per_sample=0, fingerprint="")
    with pytest.raises(JobFailed, match="expected data with the shapes") as caught:
        initial_model(
            brief_from(staged, "mlp"), data=other, sources=NOTHING, fetch=fetch_from(staged, [])
        )
    assert caught.value.reason is Reason.MODEL_INVALID


def test_without_a_checkpoint_the_specification_is_built() -> None:
    def fetch(manifest: Manifest) -> Path:
        raise AssertionError("expected nothing to be fetched")

    brief = make_brief(**job_of("vit"))
    model = initial_model(brief, data=DIGITS, sources=NOTHING, fetch=fetch)
    assert type(model).__name__ == "Vit"
