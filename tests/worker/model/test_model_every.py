"""What holds for every model: it trains, is evaluated the same by any ranks, and is what it says.

The receipts are the promise in miniature: train, write, and evaluate anew in a fresh process.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import MODELS, data_of, job_of, parse
from training_bench import Bench, bits, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.worker.evaluation.evaluate import evaluate
from roadless.worker.model.build import build_model
from roadless.worker.validation.reload import MANIFEST_FILE

ALL = pytest.mark.parametrize("name", MODELS)
STEPS = 3
VERIFY = """
import json, sys
from pathlib import Path
from roadless.worker.verify import verify
for folder in sys.argv[1:]:
    expected, seen = verify(Path(folder))
    print(json.dumps([expected.loss.hex(), seen.loss.hex(), expected.metrics, seen.metrics]))
"""


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    """Every model after three steps, an evaluation and a checkpoint."""
    found = {}
    for name in MODELS:
        brief = make_brief(**job_of(name), budget={"max_steps": STEPS})
        found[name] = Bench(brief, tmp_path_factory.mktemp("bench"))
        found[name].training.run()
    return found


@pytest.fixture(scope="module")
def receipts(benches: dict[str, Bench]) -> dict[str, list[Any]]:
    """What one fresh process finds: loss and metrics, as recorded and as seen."""
    folders = [download(bench) for bench in benches.values()]
    command = [sys.executable, "-c", VERIFY, *map(str, folders)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stdout.splitlines() if line.startswith("[")]
    return dict(zip(benches, map(json.loads, lines), strict=True))


def download(bench: Bench) -> Path:
    staged = bench.reporter.of_kind(CheckpointKind.EVAL)[-1]
    (staged.folder / MANIFEST_FILE).write_text(staged.manifest.model_dump_json())
    return staged.folder


@ALL
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(1)
    first = build_model(parse(MODELS[name]), data=data_of(name), seed=5)
    torch.manual_seed(2)
    again, other = (
        build_model(parse(MODELS[name]), data=data_of(name), seed=seed) for seed in (5, 6)
    )
    assert bits(first.state_dict()) == bits(again.state_dict())
    assert bits(first.state_dict()) != bits(other.state_dict())
    assert all(module.training for module in first.modules())


@ALL
def test_three_steps_change_every_parameter_and_the_loss_is_finite(
    benches: dict[str, Bench], name: str
) -> None:
    bench = benches[name]
    data = bench.setup.datasets.description
    fresh = build_model(parse(MODELS[name]), data=data, seed=5)
    pairs = zip(fresh.named_parameters(), bench.setup.model.parameters(), strict=True)
    assert [key for (key, before), after in pairs if torch.equal(before, after)] == []
    assert len(bench.reporter.steps) == STEPS
    (point,) = bench.reporter.evals
    assert 0 < point.loss < 10


@ALL
def test_an_evaluation_is_repeatable_and_the_same_over_three_ranks(
    benches: dict[str, Bench], name: str
) -> None:
    setup, spec = benches[name].setup, make_brief(**job_of(name)).spec
    evaluation = spec.evaluation.model_copy(update={"batch_size": 7, "max_batches": 4})

    def score(rank: int, world_size: int, gather: Any) -> Any:
        return evaluate(
            setup.model,
            data=setup.datasets.validation,
            task=spec.task,
            spec=evaluation,
            rank=rank,
            world_size=world_size,
            gather=gather,
        )

    shares: list[torch.Tensor] = []

    def listen(values: torch.Tensor) -> torch.Tensor:
        shares.append(values.clone())
        return torch.ones_like(values)

    for rank in range(3):
        score(rank, 3, listen)
    shared = score(0, 3, lambda _: torch.stack(shares).sum(0))
    alone, again = (score(0, 1, lambda values: values) for _ in range(2))
    assert bits([shared.loss, shared.metrics]) == bits([alone.loss, alone.metrics])
    assert bits([again.loss, again.metrics]) == bits([alone.loss, alone.metrics])


@ALL
def test_a_fresh_process_finds_the_loss_of_the_receipt_bit_for_bit(
    benches: dict[str, Bench], receipts: dict[str, list[Any]], name: str
) -> None:
    expected_loss, seen_loss, expected_metrics, seen_metrics = receipts[name]
    (point,) = benches[name].reporter.evals
    assert seen_loss == expected_loss == point.loss.hex()
    assert bits(seen_metrics) == bits(expected_metrics)
    assert seen_metrics.items() <= point.metrics.items(), (
        "diagnostics are beside what a receipt has"
    )


@ALL
def test_every_file_of_the_checkpoint_is_in_the_manifest(
    benches: dict[str, Bench], name: str
) -> None:
    staged = benches[name].reporter.of_kind(CheckpointKind.EVAL)[-1]
    files = {path.name for path in staged.folder.iterdir()} - {MANIFEST_FILE}
    assert {file.name for file in staged.manifest.files} == files
    assert "model.safetensors" in files


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_regression_learns_and_is_scored_by_its_errors(tmp_path: Path, name: str) -> None:
    data = {
        "kind": "builtin",
        "name": "synthetic",
        "generator": "regression",
        "num_targets": 2,
        "noise": 0.1,
    }
    brief = make_brief(
        model=MODELS[name],
        data=data,
        task="regression",
        training={"batch_size": 64},
        evaluation={"every_steps": 20, "max_batches": None},
        budget={"max_steps": 40},
    )
    bench = Bench(brief, tmp_path)
    bench.training.run()
    first, last = bench.reporter.evals
    assert last.loss < 0.8 * first.loss
    assert {"eval.mse", "eval.mae"} <= set(last.metrics)
    assert last.metrics["eval.mse"] == last.loss
    inputs, targets = (
        (
            batch := bench.setup.datasets.validation.eval_batch(
                0, bench.setup.datasets.validation.num_eval
            )
        ).inputs,
        batch.targets,
    )
    assert inputs.dtype == targets.dtype == torch.float32
