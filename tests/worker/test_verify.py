"""A downloaded model scores what its receipt says, or the command says that it does not."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from training_bench import CONVNET, MLP, Bench, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.worker import verify as verifying
from roadless.worker.checkpointing.model_files import MODEL_FILE
from roadless.worker.errors import CheckpointUnreadable
from roadless.worker.validation.reload import MANIFEST_FILE
from roadless.worker.verify import verify


def download(folder: Path, *, kind: CheckpointKind = CheckpointKind.EVAL, model: Any = MLP) -> Path:
    """A checkpoint as ``roadless pull`` leaves it: its files and the manifest."""
    bench = Bench(make_brief(model=model), folder)
    bench.training.run()
    staged = bench.reporter.of_kind(kind)[-1]
    (staged.folder / MANIFEST_FILE).write_text(staged.manifest.model_dump_json())
    return staged.folder


def change_a_weight(folder: Path) -> None:
    """Change one weight a little, and the manifest with it."""
    path, manifest = folder / MODEL_FILE, folder / MANIFEST_FILE
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 0.01
    save_file(tensors, path)
    described = json.loads(manifest.read_text())
    described["files"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(described))


def run_main(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["roadless.worker.verify", str(folder)])
    with pytest.raises(SystemExit) as left:
        verifying.main()
    return left.value.code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model", [MLP, CONVNET])
def test_an_untouched_model_is_equal(
    tmp_path: Path,
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = run_main(download(tmp_path, model=model), monkeypatch, capsys)
    assert code == 0
    assert said["equal"] is True
    assert said["loss"] == said["expected_loss"]
    assert 0 <= said["eval.accuracy"] <= 1


def test_a_changed_weight_is_unequal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = download(tmp_path)
    change_a_weight(folder)
    code, said = run_main(folder, monkeypatch, capsys)
    assert code == 1
    assert said["equal"] is False
    assert said["loss"] != said["expected_loss"]


def test_it_is_a_command(tmp_path: Path) -> None:
    """In a process of its own, with the receipt's number of threads."""
    command = [sys.executable, "-m", "roadless.worker.verify", str(download(tmp_path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["equal"] is True


def test_the_receipt_is_read_and_the_model_scored_anew(tmp_path: Path) -> None:
    folder = download(tmp_path)
    change_a_weight(folder)
    receipt, seen = verify(folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert receipt.model_dump(mode="json") == manifest["evaluation"]
    assert seen.num_examples == receipt.num_examples == 40


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_damaged_model_is_unreadable(tmp_path: Path, content: bytes | None) -> None:
    folder = download(tmp_path)
    path = folder / MODEL_FILE
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointUnreadable, match=MODEL_FILE):
        verify(folder)


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_a_missing_or_damaged_manifest_is_unreadable(tmp_path: Path, content: str | None) -> None:
    folder = download(tmp_path)
    path = folder / MANIFEST_FILE
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointUnreadable, match=MANIFEST_FILE):
        verify(folder)


def test_a_training_state_has_no_receipt(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an eval checkpoint with a receipt"):
        verify(download(tmp_path, kind=CheckpointKind.RESUME))
