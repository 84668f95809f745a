"""Data through the whole system: files of a node and uploads, over ranks, losses and bad rows."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stack import Stack, curve_of, rank_pids, wait_for_end, wait_for_step

from roadless.service.client.client import Client
from roadless.service.client.datasets import Datasets
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Phase, Reason
from roadless.worker.rank_launch import DataSources
from roadless.worker.verify import verify

WORDS = ["free", "of", "schedules", "a", "road", "goes", "on", "and", "on"]


@pytest.fixture(scope="session")
def table(stack: Stack) -> Path:
    """1000 rows that can be learnt, in a folder that the runner's operator has opened."""
    numbers = np.random.default_rng(0).normal(size=(1000, 4))
    labels = (numbers @ [1.0, -2.0, 0.5, 1.0] > 0).astype(int)
    path = stack.home / "data" / "table.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        file.write("a,b,c,d,label\n")
        for row, label in zip(numbers.tolist(), labels.tolist(), strict=True):
            file.write(",".join(map(repr, row)) + f",{label}\n")
    return path


def on_table(path: Path, **fields: Any) -> dict[str, Any]:
    data = {"kind": "files", "format": "csv", "path": str(path), "target": "label"}
    return {
        "model": {"kind": "preset", "name": "mlp", "hidden": [8]},
        "data": {**data, "standardise": True},
        "task": "classification",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.02, "warmup_steps": 5},
        "training": {"batch_size": 48, "seed": 1},
        "parallelism": {"num_workers": 2},
        "budget": {"max_steps": 120},
        "evaluation": {"every_steps": 60},
        "checkpoints": {"state_every_steps": 10},
        **fields,
    }


def test_a_table_is_learnt_and_its_model_verifies(
    stack: Stack, client: Client, table: Path, tmp_path: Path
) -> None:
    job = wait_for_end(client, client.submit(on_table(table)).id)
    assert job.phase is Phase.SUCCEEDED, job.message
    last = client.eval_curve(job.id)[-1]
    assert last.metrics["eval.accuracy"] > 0.9
    newest = next(client.checkpoints(job.id, kind=CheckpointKind.EVAL))
    client.download(newest.id, tmp_path / "model")
    sources = DataSources(roots=(str(table.parent),), cache=str(tmp_path / "cache"))
    receipt, seen = verify(tmp_path / "model", sources=sources)
    assert seen.loss.hex() == receipt.loss.hex()
    assert len(list((stack.home / "data-cache").glob("*/numbers.json"))) == 1


def test_a_killed_rank_leaves_no_trace_in_a_run_over_files(
    stack: Stack, client: Client, table: Path
) -> None:
    """Resumed at the exact sample: the curve is that of an undisturbed run, bit for bit."""
    spec = on_table(table, budget={"max_steps": 900}, evaluation={"every_steps": 300})
    undisturbed = client.submit(spec).id
    wait_for_end(client, undisturbed)
    disturbed = client.submit(spec).id
    for step in (100, 400):
        wait_for_step(client, disturbed, step)
        attempt = client.job(disturbed).attempt
        assert attempt is not None
        os.kill(rank_pids(attempt.id)[1], signal.SIGKILL)
    job = wait_for_end(client, disturbed)
    assert job.phase is Phase.SUCCEEDED, job.message
    assert job.attempt is not None
    assert job.attempt.fence > 1
    assert curve_of(client, disturbed) == curve_of(client, undisturbed)


def test_an_uploaded_text_is_trained_on(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(" ".join(WORDS * 500))
    datasets = Datasets(client)
    dataset = datasets.create("words", format="text")
    datasets.upload(dataset.id, path, on_progress=lambda num_bytes: None)
    datasets.seal(dataset.id)
    spec = {
        "model": {"kind": "preset", "name": "gpt", "layers": 1, "width": 32, "heads": 2},
        "data": {"kind": "dataset", "dataset_id": dataset.id},
        "task": "causal_lm",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
        "training": {"batch_size": 16},
        "parallelism": {"num_workers": 2},
        "budget": {"max_steps": 60},
        "evaluation": {"every_steps": 30},
    }
    job = wait_for_end(client, client.submit(spec).id)
    assert job.phase is Phase.SUCCEEDED, job.message
    first, last = client.eval_curve(job.id)
    assert last.loss < first.loss


def test_a_bad_row_fails_the_job_once_and_is_named(client: Client, table: Path) -> None:
    bad = table.with_name("bad.csv")
    lines = table.read_text().splitlines()
    lines[700] = "1,2,three,4,0"
    bad.write_text("\n".join(lines))
    job = wait_for_end(client, client.submit(on_table(bad)).id)
    assert (job.phase, job.reason) == (Phase.FAILED, Reason.DATA_INVALID)
    assert "bad.csv, row 700, column 'c': expected a number, saw 'three'" in (job.message or "")
    assert job.attempt is not None
    assert job.attempt.fence == 1
