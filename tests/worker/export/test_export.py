"""What is exported gives the model's own outputs, or nothing is there."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import entry_point_models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from model_cases import MODELS, job_of
from safetensors.torch import load_file
from training_bench import Bench, make_brief

from roadless.service.contract.checkpoint.manifest import CheckpointKind, Manifest
from roadless.service.contract.job.models import GptPreset
from roadless.worker.data.base import Description
from roadless.worker.errors import CheckpointUnreadable, ModelForbidden
from roadless.worker.export import __main__ as command
from roadless.worker.export import formats as exporting
from roadless.worker.export import onnx_file
from roadless.worker.export.compare import require_same
from roadless.worker.export.errors import ExportError, NotExportable, OutputsDiffer, ToolMissing
from roadless.worker.export.formats import export
from roadless.worker.export.onnx_file import OPSET
from roadless.worker.export.source import Loaded, load, open_source
from roadless.worker.export.transformers_folder import TOLERANCE
from roadless.worker.model.build import build_model
from roadless.worker.model.huggingface import folders as huggingface_folders
from roadless.worker.model.huggingface.folders import load_folder, write_gpt
from roadless.worker.rank_launch import ENVIRONMENTS
from roadless.worker.settings import RunnerSettings
from roadless.worker.validation.reload import MANIFEST_FILE

STEPS = 3
SETTINGS = RunnerSettings.from_environment({})
LANGUAGE_MODELS = [name for name in MODELS if "gpt" in name]
TRANSFORMERS = [name for name in MODELS if name.startswith("transformers")]


def pulled(folder: Path, *, kind: CheckpointKind = CheckpointKind.EVAL, **job: Any) -> Path:
    """A checkpoint after some steps, as ``roadless pull`` leaves it."""
    bench = Bench(make_brief(**job, budget={"max_steps": STEPS}), folder)
    bench.training.run()
    staged = bench.reporter.of_kind(kind)[-1]
    (staged.folder / MANIFEST_FILE).write_text(staged.manifest.model_dump_json())
    return staged.folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every model."""
    return {name: pulled(tmp_path_factory.mktemp("job"), **job_of(name)) for name in MODELS}


@pytest.fixture(scope="module")
def mlp(folders: dict[str, Path]) -> Path:
    return folders["mlp"]


#: What sums in another order cost a small model: most lose 1e-6.
CLOSE = 3e-5
#: gpt2 was seen to lose 9e-7 to 1.3e-5, by CPU and threads.
FURTHER = {"transformers gpt2": 1e-4}
#: How far `gpt` and its equal may differ at the same angles. Whether a product with three matrices
#: has the bits of three products is up to the library: seen were 0 and, over three layers, 2e-7.
#: Other angles cost 2e-5, and so does an epsilon twice as large.
SUMS = 2e-6


def loaded(folder: Path) -> Loaded:
    return load(open_source(folder), settings=SETTINGS)


def batch_of(data: Description, *, batch_size: int, shorter: int = 0) -> torch.Tensor:
    """Inputs that the exporter has not tried."""
    if data.tokens_per_sample:
        return torch.randint(data.num_classes, (batch_size, data.tokens_per_sample - shorter))
    return torch.rand(batch_size, *data.input_shape) * 3


def run(session: Any, inputs: torch.Tensor) -> torch.Tensor:
    (outputs,) = session.run(None, {"inputs": inputs.numpy()})
    return torch.from_numpy(outputs)


# ---- ONNX --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_an_onnx_file_gives_the_models_outputs_for_batches_of_any_size(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    close = FURTHER.get(name, CLOSE)
    said = export(folders[name], tmp_path / "out", to="onnx", settings=SETTINGS)
    assert said["files"] == ["model.onnx"]
    assert said["largest_difference"] <= close
    model = loaded(folders[name])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for batch_size, shorter in ((2, 0), (5, 3)):
        inputs = batch_of(model.data, batch_size=batch_size, shorter=shorter)
        with torch.no_grad():
            expected = model.model(inputs)
        assert expected.abs().max() > 0, "a model that says nothing proves nothing"
        torch.testing.assert_close(run(session, inputs), expected, rtol=close, atol=close)


def test_an_onnx_file_says_where_it_is_from(mlp: Path, tmp_path: Path) -> None:
    export(mlp, tmp_path / "out", to="onnx", settings=SETTINGS)
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    manifest = Manifest.model_validate_json((mlp / MANIFEST_FILE).read_bytes())
    assert {one.key: one.value for one in graph.metadata_props} == {
        "checkpoint_id": manifest.checkpoint_id,
        "job_id": "job_1",
        "step": str(STEPS),
        "opset": str(OPSET),
    }
    assert {one.domain: one.version for one in graph.opset_import}[""] == OPSET
    (axis, *_), (out_axis, *_) = (
        [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*graph.graph.input, *graph.graph.output)
    )
    assert axis == out_axis == "batch"


def test_batch_norm_is_exported_with_the_statistics_of_x(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A sample's outputs do not depend on what else is in its batch."""
    export(folders["convnet"], tmp_path / "out", to="onnx", settings=SETTINGS)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    inputs = batch_of(loaded(folders["convnet"]).data, batch_size=4)
    together = run(session, inputs)
    alone = torch.cat([run(session, one[None]) for one in inputs])
    torch.testing.assert_close(together, alone, rtol=CLOSE, atol=CLOSE)
    weights = load_file(folders["convnet"] / "model.safetensors")
    assert weights["features.0.1.running_mean"].abs().max() > 0


def test_narrow_weights_are_widened(tmp_path: Path) -> None:
    folder = pulled(tmp_path / "job", **job_of("gpt"), training={"precision": "bf16"})
    export(folder, tmp_path / "out", to="onnx", settings=SETTINGS)
    graph = onnx.load(tmp_path / "out" / "model.onnx")
    kinds = {onnx.TensorProto.DataType.Name(one.data_type) for one in graph.graph.initializer}
    assert "FLOAT" in kinds
    assert "BFLOAT16" not in kinds
    weights = load_file(folder / "model.safetensors")
    assert weights["embedding.weight"].dtype is torch.bfloat16
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert run(session, torch.zeros(1, 4, dtype=torch.int64)).dtype is torch.float32


def test_a_model_that_masks_its_padding_is_exported(tmp_path: Path) -> None:
    config = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "vocab_size": 300,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "num_labels": 3,
    }
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**{k: v for k, v in config.items() if k != "model_type"})
    )
    adapter = load_folder_of(model, tmp_path)
    data = Description((16,), 3, tokens_per_sample=16, fingerprint="")
    difference = onnx_file.write_onnx(Loaded(adapter, data), tmp_path, metadata={})
    assert difference <= 1e-5


def load_folder_of(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder / "saved")
    return load_folder(folder / "saved", auto_class="AutoModelForSequenceClassification")


class Branching(torch.nn.Module):
    """What no graph holds: the way depends on the numbers."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 2 if inputs.sum().item() > 0 else inputs.flip(0)


def test_a_model_that_torch_cannot_write_is_named(tmp_path: Path) -> None:
    data = Description((4,), 4, tokens_per_sample=0, fingerprint="")
    with pytest.raises(NotExportable, match="expected a model that torch writes as ONNX, saw "):
        onnx_file.write_onnx(Loaded(Branching(), data), tmp_path, metadata={})
    assert list(tmp_path.iterdir()) == []


class Counting(torch.nn.Module):
    """A graph of it is one of some batch sizes only."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 2 if inputs.shape[0] == 3 else inputs


def test_a_model_of_one_batch_size_is_refused(tmp_path: Path) -> None:
    data = Description((4,), 4, tokens_per_sample=0, fingerprint="")
    with pytest.raises(NotExportable, match="tracing inferred a static shape of 3"):
        onnx_file.write_onnx(Loaded(Counting(), data), tmp_path, metadata={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["__init__", "run"])
def test_a_graph_that_the_runtime_does_not_take_is_not_kept(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnxruntime.InferenceSession, method, refuse)
    with pytest.raises(NotExportable, match=r"onnxruntime .*, saw RuntimeError: no such operator"):
        export(mlp, tmp_path / "out", to="onnx", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_said_in_one_line(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting.shutil, "copyfile", full)
    arguments = ["roadless.worker.export", str(mlp), str(tmp_path / "out"), "--to", "safetensors"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"nothing was exported: .*No space left"):
        command.main()
    assert list(tmp_path.iterdir()) == []


class Forgetful(torch.nn.Module):
    """Its outputs differ from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1.0
        return inputs + self.calls


def test_a_file_that_says_something_else_is_not_kept(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_another(*_: Any, **__: Any) -> Loaded:
        return Loaded(Forgetful(), Description((4,), 4, tokens_per_sample=0, fingerprint=""))

    monkeypatch.setattr(exporting, "load", load_another)
    with pytest.raises(OutputsDiffer, match="saw outputs that differ by"):
        export(mlp, tmp_path / "out", to="onnx", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ToolMissing, match=f"expected the package {package}, which the extra 'exp"):
        export(mlp, tmp_path / "out", to="onnx", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


# ---- transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_becomes_a_folder_that_from_pretrained_loads(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    said = export(folders[name], tmp_path / "out", to="transformers", settings=SETTINGS)
    assert said["largest_difference"] <= 1e-5
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model = loaded(folders[name])
    inputs = batch_of(model.data, batch_size=3)
    with torch.no_grad():
        expected, seen = model.model(inputs), written(inputs).logits
    assert expected.abs().max() > 0
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    cached = written.generate(inputs[:, :4], max_new_tokens=4, do_sample=False, use_cache=True)
    whole = written.generate(inputs[:, :4], max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, whole)
    assert int(cached.max()) < model.data.num_classes


@pytest.mark.parametrize("tied", [True, False])
def test_the_equal_of_gpt_is_equal_up_to_sums_but_for_its_angles(
    tmp_path: Path, tied: bool
) -> None:
    """Over a long context and a padded vocabulary, with weights far from those at the start."""
    spec = GptPreset(
        kind="preset", name="gpt", layers=3, width=64, heads=4, context=1024, tied_head=tied
    )
    data = Description((1024,), 257, tokens_per_sample=1024, fingerprint="")
    model = stirred(build_model(spec, data=data, seed=0).eval())
    write_gpt(model, tmp_path, spec=spec)
    written = load_folder(tmp_path, auto_class="AutoModelForCausalLM")
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 257
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    assert require_same(Loaded(model, data), written, tolerance=TOLERANCE) > SUMS
    rotary = written.model.model.rotary_emb
    cos, sin = rotary(torch.zeros(1), torch.arange(1024)[None])
    torch.testing.assert_close(cos[0], model.cos, rtol=0, atol=1e-4)
    model.cos, model.sin = cos[0], sin[0]
    require_same(Loaded(model, data), written, tolerance=SUMS)


def stirred(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.5 if parameter.dim() == 1 else parameter.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_model_of_transformers_is_the_folder_it_was(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    said = export(folders[name], tmp_path / "out", to="transformers", settings=SETTINGS)
    assert said["largest_difference"] <= TOLERANCE
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (folders[name] / path.name).read_bytes()
    assert {"config.json", "model.safetensors"} <= set(said["files"])


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet", "vit"])
def test_a_preset_that_transformers_has_no_equal_of_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    with pytest.raises(NotExportable, match=f"saw {name}, which has no equivalent in transformers"):
        export(folders[name], tmp_path / "out", to="transformers", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_architecture_would_be_noticed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_folders, "ROTARY_BASE", 9_000.0)
    with pytest.raises(OutputsDiffer, match="saw outputs that differ by"):
        export(folders["gpt"], tmp_path / "out", to="transformers", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


# ---- safetensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet", *TRANSFORMERS])
def test_safetensors_are_those_of_the_checkpoint(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    said = export(folders[name], tmp_path / "out", to="safetensors", settings=SETTINGS)
    assert said["files"] == ["model.safetensors"]
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert content == (folders[name] / "model.safetensors").read_bytes()


def test_a_copy_that_came_out_torn_is_not_kept(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: Path, target: Path) -> None:
        content = source.read_bytes()
        target.write_bytes(content[: len(content) // 2])

    monkeypatch.setattr(exporting.shutil, "copyfile", half)
    with pytest.raises(CheckpointUnreadable, match=r"model\.safetensors"):
        export(mlp, tmp_path / "out", to="safetensors", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


# ---- what goes in ------------------------------------------------------------------------------


@pytest.mark.parametrize("to", exporting.FORMATS)
def test_a_damaged_download_is_not_exported(tmp_path: Path, to: str) -> None:
    folder = pulled(tmp_path / "job")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointUnreadable, match=r"model\.safetensors"):
        export(folder, tmp_path / "out", to=to, settings=SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_training_state_is_not_exported(tmp_path: Path) -> None:
    folder = pulled(tmp_path / "job", kind=CheckpointKind.RESUME)
    with pytest.raises(NotExportable, match="expected an eval checkpoint, saw one to resume from"):
        export(folder, tmp_path / "out", to="onnx", settings=SETTINGS)


def test_what_is_there_is_not_overwritten(mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="expected a folder that does not exist"):
        export(mlp, tmp_path / "out", to="onnx", settings=SETTINGS)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_data_is_not_needed(tmp_path: Path) -> None:
    """The job's files were on the node; the receipt says what a sample looks like."""
    folder = pulled(tmp_path / "job", **job_of("vit"))
    text = (folder / MANIFEST_FILE).read_text()
    manifest = json.loads(text)
    manifest["spec"]["data"] = {"kind": "files", "path": "/nowhere/*.npz", "format": "npz"} | {
        "target": "y",
        "columns": ["x"],
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    said = export(folder, tmp_path / "out", to="onnx", settings=SETTINGS)
    assert said["files"] == ["model.onnx"]


def test_a_checkpoint_of_an_earlier_release_is_described_by_its_data(tmp_path: Path) -> None:
    folder = pulled(tmp_path / "job", **job_of("vit"))
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    described = manifest["evaluation"].pop("data_shape")
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert loaded(folder).data.shape.model_dump(mode="json") == described


def test_a_model_that_started_from_another_is_what_that_was(tmp_path: Path) -> None:
    folder = pulled(tmp_path / "job", **job_of("gpt"))
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    architecture = manifest["spec"]["model"]
    manifest["spec"]["model"] = {
        "kind": "checkpoint",
        "checkpoint_id": "ckpt_" + "0" * 26,
        "architecture": architecture,
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    said = export(folder, tmp_path / "out", to="transformers", settings=SETTINGS)
    assert "config.json" in said["files"]


def test_a_model_of_an_entry_point_is_exported_where_it_may_be_called(tmp_path: Path) -> None:
    factory = "entry_point_models:small"
    job = job_of("mlp") | {"model": {"kind": "entry_point", "factory": factory}}
    model = entry_point_models.small(input_shape=(1, 8, 8), num_outputs=10)
    bench = Bench(make_brief(**job), tmp_path / "job", model=model)
    bench.training.run()
    staged = bench.reporter.of_kind(CheckpointKind.EVAL)[-1]
    (staged.folder / MANIFEST_FILE).write_text(staged.manifest.model_dump_json())
    with pytest.raises(ModelForbidden):
        export(staged.folder, tmp_path / "out", to="onnx", settings=SETTINGS)
    allowed = {"ROADLESS_ALLOWED_ENTRY_POINTS": factory}
    settings = RunnerSettings.from_environment(allowed)
    said = export(staged.folder, tmp_path / "out", to="onnx", settings=settings)
    assert said["files"] == ["model.onnx"]
    assert said["largest_difference"] <= 1e-5


# ---- outputs -----------------------------------------------------------------------------------


def linear() -> Loaded:
    return Loaded(torch.nn.Identity(), Description((4,), 4, tokens_per_sample=0, fingerprint=""))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (lambda inputs: inputs + 0.1, "differ by 0.0"),
        (lambda inputs: inputs * float("nan"), "differ by nan"),
        (lambda inputs: inputs[:, :2], r"expected outputs of shape \(1, 4\)"),
        (lambda inputs: inputs if len(inputs) == 1 else inputs.flip(0), "differ by"),
    ],
    ids=["shifted", "no numbers", "too few", "right for one sample only"],
)
def test_other_outputs_are_refused(written: Any, said: str) -> None:
    with pytest.raises(OutputsDiffer, match=said):
        require_same(linear(), written, tolerance=1e-4)


def test_the_same_outputs_differ_by_nothing() -> None:
    assert require_same(linear(), lambda inputs: inputs.clone(), tolerance=0) == 0.0


# ---- the command -------------------------------------------------------------------------------


def test_it_is_a_command(mlp: Path, tmp_path: Path) -> None:
    arguments = [str(mlp), str(tmp_path / "out"), "--to", "onnx"]
    ran = subprocess.run(
        [sys.executable, "-m", "roadless.worker.export", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["folder"] == str(tmp_path / "out")
    assert said["files"] == os.listdir(tmp_path / "out") == ["model.onnx"]


@pytest.mark.parametrize("fault", ["no folder", "not exportable"])
def test_the_command_says_in_one_line_why_nothing_was_exported(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    folder = tmp_path / "absent" if fault == "no folder" else mlp
    arguments = [
        "roadless.worker.export",
        str(folder),
        str(tmp_path / "out"),
        "--to",
        "transformers",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        command.main()
    assert str(left.value.code).startswith("nothing was exported: ")
    assert not (tmp_path / "out").exists()


def test_with_a_wheel_the_command_runs_in_its_environment(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []

    def run_with_wheel(wheel: Path, **how: Any) -> None:
        ran.append((wheel, how))
        raise SystemExit

    monkeypatch.setattr(command, "run_with_wheel", run_with_wheel)
    monkeypatch.setenv("ROADLESS_SCRATCH", str(tmp_path))
    out = str(tmp_path / "out")
    wheel = "models-1-py3-none-any.whl"
    arguments = ["roadless.worker.export", str(mlp), out, "--to", "onnx", "--wheel", wheel]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        command.main()
    how = {
        "root": tmp_path / ENVIRONMENTS,
        "module": "roadless.worker.export",
        "arguments": [str(mlp), out, "--to", "onnx"],
    }
    assert ran == [(Path(wheel), how)]


def test_numbers_of_a_batch_are_float32(mlp: Path, tmp_path: Path) -> None:
    export(mlp, tmp_path / "out", to="onnx", settings=SETTINGS)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    inputs = np.zeros((2, 1, 8, 8), dtype=np.float32)
    (outputs,) = session.run(None, {"inputs": inputs})
    assert (outputs.shape, outputs.dtype) == ((2, 10), np.float32)
