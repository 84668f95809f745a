"""Checkpoints are looked at before they are listed, and evaluated beside training, for real."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from stack import Stack, curve_of, rank_pids, wait_for_end, wait_for_step, wait_until

from roadless.service.client.client import Client
from roadless.service.client.datasets import Datasets
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Phase, Reason

WORDS = ["free", "of", "schedules", "a", "road", "goes", "on", "and", "on"]


@pytest.fixture(scope="module")
def dataset_id(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text that only the service has."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(WORDS * 800))
    with stack.client() as client:
        datasets = Datasets(client)
        dataset = datasets.create("words beside", format="text")
        datasets.upload(dataset.id, path, on_progress=lambda num_bytes: None)
        datasets.seal(dataset.id)
    return str(dataset.id)


def on_text(dataset_id: str, *, placement: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": {"kind": "preset", "name": "gpt", "layers": 1, "width": 32, "heads": 2},
        "data": {"kind": "dataset", "dataset_id": dataset_id},
        "task": "causal_lm",
        "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
        "training": {"batch_size": 16, "seed": 4},
        "parallelism": {"num_workers": 2},
        "budget": {"max_steps": 60},
        "evaluation": {"every_steps": 10, "batch_size": 8, "placement": placement},
        "checkpoints": {"keep_last": 10, "state_every_steps": 15},
        **fields,
    }


def helpers_of(rank_pid: int) -> list[int]:
    """Processes of a rank's session beside it: its zygote and what that has forked."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != rank_pid:
            try:
                session = os.getsid(int(process.name))
            except ProcessLookupError:
                continue
            if session == rank_pid:
                found.append(int(process.name))
    return sorted(found)


def test_two_ranks_on_uploaded_data_give_the_same_curve_inline_and_beside_training(
    client: Client, dataset_id: str
) -> None:
    """Bit for bit; each point has its checkpoint, and each checkpoint its check."""
    ids = [
        client.submit(on_text(dataset_id, placement=placement)).id
        for placement in ("inline", "async")
    ]
    for job_id in ids:
        job = wait_for_end(client, job_id)
        assert job.phase is Phase.SUCCEEDED, job.message
        points = client.eval_curve(job_id)
        assert [point.step for point in points] == [10, 20, 30, 40, 50, 60]
        listed = {c.id: c for c in client.checkpoints(job_id, kind=CheckpointKind.EVAL)}
        for point in points:
            receipt = listed[point.checkpoint_id].evaluation
            assert receipt is not None
            assert receipt.check is not None
            assert receipt.check.seen_loss == receipt.check.loss
            assert receipt.loss == point.loss
    inline, beside = (curve_of(client, job_id)[1] for job_id in ids)
    assert inline == beside


def test_killed_helpers_cost_nothing_that_is_said_and_nothing_stays_behind(
    client: Client, dataset_id: str
) -> None:
    """The evaluator twice, whose questions the next one answers; then the job is cancelled."""
    spec = on_text(dataset_id, placement="async", budget=None)
    job_id = client.submit(spec).id
    wait_for_step(client, job_id, 20)
    attempt = client.job(job_id).attempt
    assert attempt is not None
    lead = rank_pids(attempt.id)[0]
    for step in (60, 120):
        zygote, *evaluators = wait_until(lambda: _with_evaluator(lead))
        for pid in evaluators:
            os.kill(pid, signal.SIGKILL)
        wait_for_step(client, job_id, step)
    assert zygote == helpers_of(lead)[0]
    client.cancel(job_id)
    assert wait_for_end(client, job_id).phase is Phase.CANCELLED
    assert helpers_of(lead) == []
    steps = [point.step for point in client.eval_curve(job_id)]
    assert steps == list(range(10, 10 * len(steps) + 1, 10))
    assert len(steps) >= 8


def _with_evaluator(lead: int) -> list[int]:
    found = helpers_of(lead)
    return found if len(found) > 1 else []


def test_a_goal_is_reached_beside_training(client: Client, dataset_id: str) -> None:
    budget = {
        "max_steps": 2000,
        "until": {"metric": "eval.loss", "value": 2.5, "mode": "min"},
    }
    job_id = client.submit(on_text(dataset_id, placement="async", budget=budget)).id
    job = wait_for_end(client, job_id)
    assert (job.phase, job.reason) == (Phase.SUCCEEDED, Reason.GOAL_REACHED), job.message
    points = client.eval_curve(job_id)
    reached = [point.step for point in points if point.loss <= 2.5]
    assert reached[0] % 10 == 0
    assert points[-1].step == job.progress.step >= reached[0]


def test_eval_checkpoints_that_would_go_at_once_do_not_fill_the_disk_of_a_lonely_rank(
    stack: Stack, client: Client, dataset_id: str
) -> None:
    """While the service is away, only what the job keeps waits; every point arrives in the end."""
    checkpoints = {"keep_last": 2, "keep_best": 1, "state_every_steps": 10_000}
    spec = on_text(dataset_id, placement="inline", budget=None, checkpoints=checkpoints)
    job_id = client.submit({**spec, "parallelism": {"num_workers": 1}}).id
    wait_for_step(client, job_id, 20)
    attempt = client.job(job_id).attempt
    assert attempt is not None
    stack.service.kill()
    stack.service.wait()
    log = stack.home / "scratch"
    staged: set[str] = set()
    wait_until(lambda: len(_note_staged(log, staged)) > 12)
    waiting = list(log.glob(f"**/{attempt.id}/staging-0/*"))
    stack.start_service()
    client.stop(job_id)
    job = wait_for_end(client, job_id)
    assert job.phase is Phase.STOPPED, job.message
    assert len(waiting) <= 1 + 2 * (2 + 1)  # in turn; looked at, and not yet
    steps = [point.step for point in client.eval_curve(job_id)]
    assert steps[:-1] == list(range(10, 10 * len(steps[:-1]) + 1, 10))


def _note_staged(folder: Path, staged: set[str]) -> set[str]:
    staged |= {path.name for path in folder.glob("**/staging-0/*")}
    return staged
