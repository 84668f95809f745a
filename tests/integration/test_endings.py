"""How jobs end on the whole system: as asked, or FAILED with a reason that its owner can act on."""

import io
import json
import subprocess
import sys
import tarfile

import pytest
from stack import wait_for_end, wait_for_step, wait_until

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.states import Desired, Phase

BYTES = {
    "name": "bytes",
    "model": {"kind": "preset", "name": "gpt", "layers": 1, "width": 16, "heads": 1, "context": 8},
    "task": "causal_lm",
    "optimizer": {"name": "adamw_schedulefree"},
    "training": {"batch_size": 4},
    "budget": {"max_steps": 5},
}
OPEN_ENDED = {
    "name": "open-ended",
    "model": {"kind": "preset", "name": "convnet", "width": 8},
    "data": {"kind": "builtin", "name": "digits"},
    "task": "classification",
    "optimizer": {"name": "adamw_schedulefree", "lr": 0.01},
    "training": {"batch_size": 48},
    "parallelism": {"num_workers": 2},
    "evaluation": {"every_steps": 20, "batchnorm_batches": 2},
}


@pytest.fixture
def data_root(stack):
    folder = stack.home / "data"
    folder.mkdir(exist_ok=True)
    return folder


def bytes_spec(path):
    return {**BYTES, "data": {"kind": "files", "name": "bytes", "path": str(path)}}


def test_a_missing_file_fails_the_job_with_its_name(client, data_root):
    job = wait_for_end(client, client.submit(bytes_spec(data_root / "nope.txt")).id)
    assert (job.phase, job.reason) == (Phase.FAILED, "data_not_found")
    assert str(data_root / "nope.txt") in job.message
    assert job.attempt.fence == 1


def test_a_folder_in_place_of_a_file_is_unreadable(client, data_root):
    job = wait_for_end(client, client.submit(bytes_spec(data_root)).id)
    assert (job.phase, job.reason) == (Phase.FAILED, "data_unreadable")


def test_a_file_outside_the_opened_folders_is_forbidden(client):
    job = wait_for_end(client, client.submit(bytes_spec("/etc/hostname")).id)
    assert (job.phase, job.reason) == (Phase.FAILED, "data_forbidden")
    assert "ROADLESS_DATA_ROOTS" in job.message


def test_a_file_in_an_opened_folder_trains(client, data_root):
    (data_root / "corpus.txt").write_bytes(b"to be or not to be, " * 200)
    job = wait_for_end(client, client.submit(bytes_spec(data_root / "corpus.txt")).id)
    assert (job.phase, job.reason) == (Phase.SUCCEEDED, "budget_reached")
    assert job.progress.tokens == 5 * 4 * 8


def test_a_diverging_job_fails_before_the_bad_step_and_keeps_its_checkpoints(client):
    spec = {
        **OPEN_ENDED,
        "model": {"kind": "preset", "name": "mlp"},
        "optimizer": {"name": "sgd_schedulefree", "lr": 1e6},
        "evaluation": {"every_steps": 1},
    }
    job_id = client.submit(spec).id
    job = wait_for_end(client, job_id)
    assert (job.phase, job.reason) == (Phase.FAILED, "non_finite_loss")
    assert "expected a finite" in job.message
    curve = client.eval_curve(job_id)
    assert curve[-1].step == job.progress.step
    assert curve[-1].checkpoint_id is not None
    losses = client.metric(job_id, "train.loss", buckets=2000)
    assert sum(losses.non_finite_count) == 0
    assert client.checkpoint(curve[-1].checkpoint_id).files


def test_an_open_ended_job_stops_with_a_last_evaluation_and_a_training_state(client):
    job_id = client.submit(OPEN_ENDED).id
    wait_for_step(client, job_id, 25)
    client.stop(job_id)
    job = wait_for_end(client, job_id)
    assert (job.phase, job.reason, job.desired) == (Phase.STOPPED, "stopped_by_user", Desired.STOP)
    kinds = {c.kind: c.step for c in reversed(list(client.checkpoints(job_id)))}
    assert kinds == {
        CheckpointKind.EVAL: job.progress.step,
        CheckpointKind.RESUME: job.progress.step,
    }
    assert client.eval_curve(job_id)[-1].step == job.progress.step


def test_a_job_that_is_stopped_before_its_first_step_still_leaves_a_model(client):
    job_id = client.submit(OPEN_ENDED).id
    wait_until(lambda: client.job(job_id).phase is not Phase.QUEUED)
    client.stop(job_id)
    assert wait_for_end(client, job_id).phase is Phase.STOPPED
    assert client.eval_curve(job_id)[-1].checkpoint_id is not None


def test_an_evaluation_that_was_asked_for_is_kept_when_later_ones_are_not(client):
    spec = {**OPEN_ENDED, "checkpoints": {"keep_last": 1, "keep_best": 0}}
    job_id = client.submit(spec).id
    wait_for_step(client, job_id, 5)
    client.evaluate(job_id)

    def asked_for():
        return next((c for c in client.checkpoints(job_id) if c.pinned), None)

    kept = wait_until(asked_for)
    wait_for_step(client, job_id, kept.step + 60)
    client.stop(job_id)
    wait_for_end(client, job_id)
    evals = [c.step for c in client.checkpoints(job_id, kind=CheckpointKind.EVAL)]
    assert evals == [client.job(job_id).progress.step, kept.step]
    point = next(p for p in client.eval_curve(job_id) if p.step == kept.step)
    assert point.checkpoint_id == kept.id


@pytest.mark.parametrize(
    ("model", "workers"), [("convnet", 2), ("convnet", 1), ("mlp", 2), ("mlp", 3)]
)
def test_a_downloaded_model_scores_what_the_curve_says(client, tmp_path, model, workers):
    spec = {
        **OPEN_ENDED,
        "model": {"kind": "preset", "name": model},
        "parallelism": {"num_workers": workers},
        "budget": {"max_steps": 15},
        "evaluation": {"every_steps": 10, "batch_size": 100, "batchnorm_batches": 2},
    }
    job_id = client.submit(spec).id
    assert wait_for_end(client, job_id).phase is Phase.SUCCEEDED
    point = client.eval_curve(job_id)[-1]
    client.download(point.checkpoint_id, tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "roadless.worker.verify", str(tmp_path)],
        capture_output=True,
        check=True,
    )
    assert json.loads(result.stdout)["loss"] == point.loss


def test_the_archive_holds_the_files_byte_for_byte(stack, client, tmp_path):
    job_id = client.submit({**OPEN_ENDED, "budget": {"max_steps": 5}}).id
    wait_for_end(client, job_id)
    checkpoint_id = client.eval_curve(job_id)[-1].checkpoint_id
    manifest = client.download(checkpoint_id, tmp_path)
    answer = stack.get(f"/v1/checkpoints/{checkpoint_id}/download")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        assert archive.getnames() == ["manifest.json", *(file.name for file in manifest.files)]
        for file in manifest.files:
            assert archive.extractfile(file.name).read() == (tmp_path / file.name).read_bytes()
        listed = json.loads(archive.extractfile("manifest.json").read())
    assert listed == json.loads((tmp_path / "manifest.json").read_text())
